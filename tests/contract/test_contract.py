"""What MONAI asks of every bundle: ids, metadata, network, config files, loading."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigWorkflow
from torch import distributed

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_workflow, package, small, workflows
from tests.support.runs import run_id
from tools import REPO

IMPORT_COST = """
import os, pkgutil, sys, time
import monai.bundle
for root, name in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.path.insert(0, root)
    for _ in range(3):
        if os.fork() == 0:
            start = time.process_time()
            package = __import__(name)
            for module in pkgutil.iter_modules(package.__path__):
                __import__(f"{name}.{module.name}")
            sys.stdout.write(f"{name} {time.process_time() - start}\\n")
            sys.stdout.flush()
            os._exit(0)
        os.wait()
"""


def folder(bundle: str) -> Path:
    return REPO / "bundles" / bundle


def config(bundle: str, stem: str) -> str:
    return str(folder(bundle) / f"configs/{stem}.yaml")


def metadata(bundle: str) -> str:
    return str(folder(bundle) / "configs/metadata.json")


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What torchrun and the `run` of a multi-GPU overlay set up, for a single process."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@each_bundle
def test_every_config_is_part_of_a_workflow(bundle: str) -> None:
    used = {Path(file).stem for workflow in workflows(bundle) for file in config_files(bundle, workflow)}
    assert used == {path.stem for path in folder(bundle).glob("configs/*.yaml")}
    assert {"train", "evaluate", "inference", "multi_gpu_train"} <= set(workflows(bundle))


@each_workflow
def test_properties(
    bundle: str, workflow: str, phantoms: NamedPath, weights: NamedPath, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No required id is missing or fails to be built, no optional one is wrong."""
    files = config_files(bundle, workflow)
    if any("multi_gpu" in file for file in files):
        request.getfixturevalue("process_group")
    places = {"dataset_dir": phantoms(bundle), "ckpt_dir": weights(bundle), "output_dir": tmp_path}
    kind = run_id(bundle, workflow)
    opened = ConfigWorkflow(
        files,
        # MONAI has properties for two kinds; of any other it asks for the metadata alone.
        workflow_type={"training": "train", "evaluating": "train", "inference": "infer"}.get(kind),
        logging_file=False,
        **small(bundle, workflow),
        **{name: str(place) for name, place in places.items()},
    )
    opened.initialize()
    assert opened.check_properties() == []


@each_bundle
def test_network_keeps_to_its_metadata(bundle: str) -> None:
    monai.bundle.verify_net_in_out(
        "network_def", meta_file=metadata(bundle), config_file=config(bundle, "inference"), device="cpu"
    )


@pytest.mark.gate
def test_packages_are_quick_to_import() -> None:
    """Each in a process that has imported MONAI only."""
    words = [word for bundle in NAMES for word in (str(folder(bundle)), package(bundle))]
    command = [sys.executable, "-c", IMPORT_COST, *words]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    costs: dict[str, list[float]] = {}
    for name, cost in map(str.split, lines):
        costs.setdefault(name, []).append(float(cost))
    assert {name: len(values) for name, values in costs.items()} == {package(bundle): 3 for bundle in NAMES}
    assert {name for name, values in costs.items() if min(values) >= 0.2} == set()


@pytest.mark.parametrize("place", ["repository", "bundle", "elsewhere"])
@each_bundle
def test_bundle_root_from_any_folder(
    bundle: str, place: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"repository": REPO, "bundle": folder(bundle), "elsewhere": tmp_path}[place]
    monkeypatch.chdir(here)
    for stem in ("train", "inference"):
        file = os.path.relpath(config(bundle, stem), here)
        opened = ConfigWorkflow(file, run_id="bundle_root", logging_file=False)
        opened.initialize()
        assert Path(opened.run()[0]).resolve() == folder(bundle)


@pytest.mark.parametrize("bundles", [NAMES, NAMES[::-1]], ids=["forwards", "backwards"])
def test_all_bundles_in_one_process(bundles: list[str], fresh: None) -> None:
    """Each gets its own classes, not those of a package of the same name, whichever came before."""
    for bundle in bundles:
        opened = ConfigWorkflow(config(bundle, "inference"), run_id="network_def", logging_file=False)
        opened.initialize()
        (network,) = opened.run()
        file = Path(str(sys.modules[type(network).__module__].__file__))
        assert file.is_relative_to(folder(bundle)) or type(network).__module__.startswith("monai.")
        assert Path(str(sys.modules[package(bundle)].__file__)).parent == folder(bundle) / package(bundle)
