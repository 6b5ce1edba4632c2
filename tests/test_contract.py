"""What MONAI asks of every bundle: ids, metadata, network, config files, loading."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import distributed

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_workflow, package, small, workflows
from tests.runs import run_id
from tools import BUNDLES, REPO
from tools.pack import json_twin

CONFIGS = [(bundle.name, path.stem) for bundle in BUNDLES for path in sorted(bundle.glob("configs/*.yaml"))]
IMPORT_COST = """
import os, pkgutil, sys, time
import monai.bundle
sys.path.insert(0, sys.argv[1])
for _ in range(3):
    if os.fork() == 0:
        start = time.process_time()
        package = __import__(sys.argv[2])
        for module in pkgutil.iter_modules(package.__path__):
            __import__(f"{sys.argv[2]}.{module.name}")
        sys.stdout.write(f"{time.process_time() - start}\\n")
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
def test_metadata(bundle: str) -> None:
    """The schema lies there already, so nothing is downloaded."""
    monai.bundle.verify_metadata(meta_file=metadata(bundle), filepath=str(REPO / "tests/metadata_schema.json"))


@each_bundle
def test_network_keeps_to_its_metadata(bundle: str) -> None:
    monai.bundle.verify_net_in_out(
        "network_def", meta_file=metadata(bundle), config_file=config(bundle, "inference"), device="cpu"
    )


@pytest.mark.parametrize(("bundle", "stem"), CONFIGS)
def test_config_survives_rewriting(bundle: str, stem: str, tmp_path: Path) -> None:
    content = ConfigParser.load_config_file(config(bundle, stem))
    (tmp_path / "twin.json").write_text(json_twin(Path(config(bundle, stem))), encoding="utf-8")
    ConfigParser.export_config_file(content, str(tmp_path / "copy.yaml"), fmt="yaml")
    for name in ("twin.json", "copy.yaml"):
        assert ConfigParser.load_config_file(tmp_path / name) == content


@each_bundle
def test_package_is_quick_to_import(bundle: str) -> None:
    command = [sys.executable, "-c", IMPORT_COST, str(folder(bundle)), package(bundle)]
    costs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(costs) == 3
    assert min(map(float, costs)) < 0.2


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


@pytest.mark.parametrize(("first", "second"), permutations(NAMES, 2))
def test_two_bundles_in_one_process(first: str, second: str, fresh: None) -> None:
    """Each gets its own classes, not those of a package of the same name."""
    for bundle in (first, second):
        opened = ConfigWorkflow(config(bundle, "inference"), run_id="network_def", logging_file=False)
        opened.initialize()
        (network,) = opened.run()
        file = Path(str(sys.modules[type(network).__module__].__file__))
        assert file.is_relative_to(folder(bundle)) or type(network).__module__.startswith("monai.")
        assert Path(str(sys.modules[package(bundle)].__file__)).parent == folder(bundle) / package(bundle)
