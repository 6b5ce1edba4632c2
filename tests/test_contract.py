"""What MONAI asks of every bundle: ids, metadata, network, exports, config files, loading."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import monai.bundle
import onnx
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import _get_fake_input_shape
from onnx.reference import ReferenceEvaluator
from torch import distributed, nn

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_workflow, package, small, workflows
from tests.runs import run_id
from tools import BUNDLES, REPO
from tools.pack import json_twin, pack

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


def network_with_weights(bundle: str, weights: Path) -> tuple[nn.Module, torch.Tensor]:
    """The network of inference.yaml in evaluation mode, and an input of the shape that the metadata declare."""
    parser = ConfigParser()
    parser.read_config(config(bundle, "inference"))
    parser.read_meta(metadata(bundle))
    network: nn.Module = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights / "model.pt", weights_only=True))
    torch.manual_seed(1)
    return network.eval(), torch.rand(_get_fake_input_shape(parser))


def export_arguments(bundle: str, weights: Path, target: Path) -> dict[str, Any]:
    return {
        "net_id": "network_def",
        "filepath": str(target),
        "ckpt_file": str(weights / "model.pt"),
        "meta_file": metadata(bundle),
        "config_file": config(bundle, "inference"),
    }


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What torchrun and the `run` of a multi-GPU overlay set up, for a single process."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No bundle's package is imported or can be, as in a new process."""
    packages = {package(bundle) for bundle in NAMES}

    def forget() -> dict[str, Any]:
        names = [name for name in sys.modules if name.split(".")[0] in packages]
        return {name: sys.modules.pop(name) for name in names}

    before = forget()
    roots = {str(bundle) for bundle in BUNDLES}
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in roots])
    sys.path_importer_cache.clear()  # keeps what a relative entry meant in an earlier working directory
    yield
    forget()
    sys.modules.update(before)


@pytest.fixture
def release(bundle: str, weights: NamedPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that holds the unpacked release of a bundle with random weights."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    ignored = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
    source = Path(shutil.copytree(folder(bundle), tmp_path / "source" / bundle, ignore=ignored))
    for command in (["init", "-q"], ["add", "-A", "."]):
        subprocess.run(["git", "-C", str(source), *command], check=True)
    shutil.copytree(weights(bundle), source / "models")
    (asset,) = pack(str(source), str(tmp_path / "dist"))
    with zipfile.ZipFile(tmp_path / "dist" / f"{asset}.zip") as archive:
        archive.extractall(tmp_path / "home")
    return tmp_path / "home"


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


@each_bundle
def test_torchscript_equals_eager(bundle: str, weights: NamedPath, tmp_path: Path) -> None:
    monai.bundle.ckpt_export(**export_arguments(bundle, weights(bundle), tmp_path / "model.ts"))
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra)  # type: ignore[no-untyped-call]
    network, x = network_with_weights(bundle, weights(bundle))
    with torch.inference_mode():
        x = torch.cat([x, -x])  # a single small volume may be convolved in another way than TorchScript does
        torch.testing.assert_close(exported(x), network(x))
    stored = json.loads(extra["inference.json"])
    assert stored == ConfigParser.load_config_file(config(bundle, "inference"))


@each_bundle
def test_onnx_equals_eager(bundle: str, weights: NamedPath, tmp_path: Path) -> None:
    monai.bundle.onnx_export(**export_arguments(bundle, weights(bundle), tmp_path / "model.onnx"))
    exported = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    network, x = network_with_weights(bundle, weights(bundle))
    with torch.inference_mode():
        expected = network(x)
    (found,) = exported.run(None, {exported.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


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


@each_bundle
def test_release_loads(
    bundle: str, release: Path, weights: NamedPath, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class is that of the release, not of this checkout, and holds the packed weights."""
    monkeypatch.syspath_prepend(str(release / bundle))
    target = ConfigParser.load_config_file(config(bundle, "inference"))["network_def"]["_target_"]
    expected = torch.load(weights(bundle) / "model.pt", weights_only=True)
    for kind in ("train", "inference"):
        network = monai.bundle.load(name=bundle, bundle_dir=str(release), workflow_type=kind)
        assert type(network).__name__ == target.rpartition(".")[2]
        file = Path(str(sys.modules[type(network).__module__].__file__))
        assert file.is_relative_to(release) or type(network).__module__.startswith("monai.")
        found = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
