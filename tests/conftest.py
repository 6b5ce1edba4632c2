"""What the tests share: the bundles, their workflows at a small size, phantom scans, random weights, real scans."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import BUNDLES, REPO

# Before torch is imported: one thread is repeatable, and at these sizes as fast as many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing that tests import tells others of it, or writes to the home folder.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HOME", str(Path(tempfile.gettempdir(), "bundle_tests_hub")))
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir(), "bundle_tests_cache"))
sys.path += [str(bundle) for bundle in BUNDLES if str(bundle) not in sys.path]

pytest_plugins = ["tests.support.trajectories"]
NamedPath = Callable[[str], Path]


SHARED = {"trajectory", "trained"}  # fixtures that are long to make, one for each bundle


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a bundle that share a training run in one process; these come first, and long ones before them.

    Those that read real scans are the gate's.
    """
    for item in items:
        bundle = item.callspec.params.get("bundle") if hasattr(item, "callspec") else None
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gate)
        if bundle and SHARED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(bundle))
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("nightly", "xdist_group")])


@cache
def recipe(bundle: str) -> dict[str, Any]:
    """Content of the bundle's `workflows.yaml`."""
    path = REPO / "tests/bundles" / package(bundle) / "workflows.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def small(bundle: str, workflow: str) -> dict[str, Any]:
    """Overrides that let a workflow end within seconds."""
    return dict(recipe(bundle)["workflows"][workflow]["overrides"])


def config_files(bundle: str, workflow: str) -> list[str]:
    """Paths of the config files that make up a workflow, in the order of merging."""
    stems = recipe(bundle)["workflows"][workflow]["files"]
    return [str(REPO / "bundles" / bundle / "configs" / f"{stem}.yaml") for stem in stems]


def workflows(bundle: str) -> list[str]:
    """Names of the workflows of a bundle: `train`, `evaluate`, `inference` and one or more for each overlay."""
    return list(recipe(bundle)["workflows"])


def label_values(bundle: str) -> set[int]:
    """Values of the bundle's label maps, from its metadata."""
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    return {int(value) for value in metadata["network_data_format"]["outputs"]["pred"]["channel_def"]}


def package(bundle: str) -> str:
    """Name of the bundle's Python package."""
    (init,) = (REPO / "bundles" / bundle).glob("*/__init__.py")
    return init.parent.name


def data_module(bundle: str) -> Any:
    """The module in which a bundle finds its scans, its own or one that it shares."""
    name = package(bundle)
    own = importlib.util.find_spec(f"{name}.data")
    return importlib.import_module(f"{name}.data" if own else f"{name}.shared.data")


NAMES = [bundle.name for bundle in BUNDLES]
each_bundle = pytest.mark.parametrize("bundle", NAMES)
each_of_two = pytest.mark.parametrize("bundle", NAMES[1:3])  # where the module is the same in all
each_workflow = pytest.mark.parametrize(
    ("bundle", "workflow"),
    [(name, flow) for name in NAMES for flow in workflows(name) if "needs" not in recipe(name)["workflows"][flow]],
)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """Data folder of five small phantom cases in the layout of a bundle's real data; read only."""

    @cache
    def folder(bundle: str) -> Path:
        from tools.data.phantoms import phantoms as make

        return make(bundle, str(tmp_path_factory.mktemp(f"{bundle}_phantoms")), cases=5, **recipe(bundle)["phantoms"])

    return folder


def random_weights(bundle: str, target: Path, **overrides: Any) -> Path:
    """Fills a `ckpt_dir` with random weights for every network of a bundle and what else runs look for in it."""
    import torch
    from monai.bundle import ConfigParser

    configs = REPO / "bundles" / bundle / "configs"
    for name, source in recipe(bundle)["weights"].items():
        torch.manual_seed(0)
        parser = ConfigParser()
        parser.read_config([str(configs / f"{stem}.yaml") for stem in source["files"]])
        parser.update(overrides)
        torch.save(parser.get_parsed_content(source["network"]).state_dict(), target / name)
    for name, value in recipe(bundle).get("values", {}).items():
        (target / name).write_text(json.dumps(value), encoding="utf-8")
    return target


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """`ckpt_dir` with random weights of a bundle; read only."""
    return cache(lambda bundle: random_weights(bundle, tmp_path_factory.mktemp(f"{bundle}_weights")))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """`ckpt_dir` with random weights for the `tiny` networks of a bundle; read only."""
    return cache(
        lambda bundle: random_weights(bundle, tmp_path_factory.mktemp(f"{bundle}_tiny"), **recipe(bundle)["tiny"])
    )


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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans, given by the environment variable BUNDLE_DATA."""
    folder = os.environ.get("BUNDLE_DATA")
    if not folder:
        pytest.skip("needs real scans: set BUNDLE_DATA to the folder that holds them")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real scans: BUNDLE_DATA={folder} is no folder")
    return Path(folder)
