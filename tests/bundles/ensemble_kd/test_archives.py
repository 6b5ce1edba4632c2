"""Bundles that are no members of an ensemble of ensemble_kd_kits_ct, and those that come as archives."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import vnet_atrial
from ensemble_kd.external import BundleMember
from ensemble_kd.shared.validation import InputError
from tests.bundles.ensemble_kd.bundles import make_scan, member, own_grid, pointwise, write
from tests.conftest import NamedPath
from tools import REPO
from tools.registry.pack import pack

ATRIAL = "vnet_atrial_mri"
SETTINGS = {"locate": False, "pixdim": [2.0, 2.0, 2.0], "patch_size": [32, 32, 16]}
TINY = {"network_def#channels": [2, 4, 8, 16, 32]}
PACKAGE = "toy_member"
NETWORK = """
import torch

class Net(torch.nn.Conv3d):
    def __init__(self):
        super().__init__(1, 1, 1)
"""


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    """Afterwards, folders and packages of bundles are as before."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in (PACKAGE, "vnet_atrial")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in modules.items() if name.partition(".")[0] == "vnet_atrial"})


@pytest.fixture
def scan(tmp_path: Path) -> torch.Tensor:
    return own_grid(make_scan(tmp_path / "a.nii.gz"))


def packaged(folder: Path) -> Path:
    """A bundle with a package of its own."""
    pointwise(folder, 0.5)
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    (folder / PACKAGE / "net.py").write_text(NETWORK)
    return configure(folder, network_def={"_target_": f"{PACKAGE}.net.Net"})


def configure(folder: Path, *, config: str = "inference", **entries: Any) -> Path:
    """Changes entries of a config; those of None go."""
    path = folder / f"configs/{config}.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def zipped(folder: Path, *, top: str = "", extra: Sequence[str] = ()) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{top}{path.relative_to(folder)}")
        for name in extra:
            file.writestr(name, "not here")
    return archive


@pytest.mark.parametrize("top", ["", "toy/", "any name/"])
def test_archives_of_both_forms(top: str, scan: torch.Tensor, tmp_path: Path) -> None:
    """Two members of one archive share its package."""
    archive = zipped(packaged(tmp_path / "toy"), top=top, extra=["__MACOSX/toy/._configs"])
    shutil.rmtree(tmp_path / "toy")
    for made in (member(archive, [[], [0]]), member(archive, [[0], []])):
        expected = torch.tensor(0.5).sigmoid() if made.channels[1] else 1 - torch.tensor(0.5).sigmoid()
        assert torch.allclose(torch.as_tensor(made(scan))[0, 1], expected, atol=1e-5)
        assert made.identity()["bundle"] == "toy.zip"
    assert Path(str(sys.modules[PACKAGE].__file__)).is_file()


def test_released_archive_gives_what_the_folder_gives(
    scan: torch.Tensor, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """With JSON in the place of YAML; where the package is loaded already, it is rejected."""
    given: dict[str, Any] = {"weights": str(tiny_weights(ATRIAL) / "model.pt"), "overrides": SETTINGS | TINY}
    expected = member(REPO / "bundles" / ATRIAL, [[], [0]], **given)(scan)
    pack(ATRIAL, str(tmp_path))
    (archive,) = tmp_path.glob("*.zip")
    with pytest.raises(InputError, match=f"its package vnet_atrial is already loaded from {vnet_atrial.__file__}"):
        member(archive, [[], [0]], **given)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vnet_atrial"]:
        del sys.modules[name]
    made = member(archive, [[], [0]], **given)
    assert Path(str(sys.modules["vnet_atrial"].__file__)).parents[2] != REPO / "bundles"
    assert torch.equal(torch.as_tensor(made(scan)), torch.as_tensor(expected))


def test_no_file_of_an_archive_leaves_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "absolute.txt"
    archive = zipped(write(tmp_path / "toy"), extra=["../escaped.txt", "../../../escaped.txt", str(outside)])
    made = member(archive, [[0], [1], [2]])
    assert not outside.exists()
    root = made._root()
    assert not (root.parent / "escaped.txt").exists()
    assert (root / "escaped.txt").is_file()


def test_package_of_another_bundle_is_refused(tmp_path: Path) -> None:
    first, second = packaged(tmp_path / "one"), packaged(tmp_path / "two")
    member(first, [[], [0]])
    member(first, [[], [0]])
    rule = f"member x: .*two: its package {PACKAGE} is already loaded from .*/one/{PACKAGE}/__init__.py"
    with pytest.raises(InputError, match=rule):
        member(second, [[], [0]])


@pytest.mark.parametrize(
    "channels", [[[], [], [0]], [[], [0], [0]], [[0, 0], [1]], [[], None, [1]]], ids=["two", "twice", "same", "null"]
)
def test_impossible_maps_are_refused(channels: Any) -> None:
    with pytest.raises(
        InputError, match=r"member x: .*at most one class may be without channels, and no channel in two"
    ):
        BundleMember("x", "/nowhere", channels=channels)


def test_maps_that_do_not_fit_are_refused(scan: torch.Tensor, tmp_path: Path) -> None:
    bundle = pointwise(tmp_path / "toy", 0.0, 1.0)
    with pytest.raises(InputError, match=r"member x: .*one entry for each of 3 classes, got \[\[\], \[0\]\]"):
        member(bundle, [[], [0]], load=False).load(3)
    with pytest.raises(InputError, match=r"member x: .*toy: channels name output 2, it has 2 outputs"):
        member(bundle, [[], [0, 2]])(scan)
    assert member(bundle, [[], [0, 1]])(scan).shape[1] == 2


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    rule = "is neither a bundle's folder nor a zip of one"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no zip")
    for name in ("nowhere", "empty", "file.txt"):
        with pytest.raises(InputError, match=f"member x: .*{name}: {rule}"):
            member(tmp_path / name, [[], [0]])
    for name in ("one", "two"):
        write(tmp_path / "several" / name)
    with pytest.raises(InputError, match=rule):
        member(tmp_path / "several", [[0], [1], [2]])


def test_missing_ids_and_configs_are_named(tmp_path: Path) -> None:
    bundle = configure(write(tmp_path / "toy"), inferer=None, postprocessing=None)
    with pytest.raises(InputError, match=r"member x: .*its inference config has no inferer, postprocessing"):
        member(bundle, [[0], [1], [2]])
    with pytest.raises(InputError, match=r"member x: .*has no configs/infer\.json or \.yaml"):
        member(bundle, [[0], [1], [2]], config="infer")


def test_missing_packages_are_named(tmp_path: Path) -> None:
    packages = {"nibabel": "5.0", "no-such-package": "1.0", "pytorch-ignite": "0.5", "another_missing": "2.0"}
    bundle = configure(write(tmp_path / "toy"), config="metadata", required_packages_version=packages)
    rule = "member x: .*needs packages that are not installed: no-such-package, another_missing$"
    with pytest.raises(InputError, match=rule):
        member(bundle, [[0], [1], [2]])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "toy")
    with pytest.raises(InputError, match=r"toy/models/other\.pt: there are no such weights"):
        member(bundle, [[0], [1], [2]], weights="models/other.pt")
    with pytest.raises(InputError, match=r"toy/models/model\.pt: does not fit the chosen UNet"):
        member(bundle, [[0], [1], [2]], overrides={"network_def#channels": [8, 8]})


def test_outputs_that_are_no_probabilities_are_refused(scan: torch.Tensor, tmp_path: Path) -> None:
    """A post-processing that takes the largest logit has no activation."""
    made = member(
        pointwise(tmp_path / "toy", 3.0, -2.0, activation={"_target_": "Identityd", "keys": "pred"}), [[0], [1]]
    )
    with pytest.raises(
        InputError, match=r"member x: .*gives -2 to 3, no probabilities: its post-processing has no act"
    ):
        made(scan)


def test_identity_tells_maps_and_settings_apart(tmp_path: Path) -> None:
    """Soft labels of another map of channels are others."""
    bundle = pointwise(tmp_path / "toy", 0.0, 1.0)
    kinds: list[dict[str, Any]] = [
        {"channels": [[], [0]]},
        {"channels": [[], [1]]},
        {"channels": [[], [0]], "overrides": {"inferer": {"_target_": "SimpleInferer"}}},
    ]
    found = [BundleMember("x", str(bundle), **kind).identity() for kind in kinds]
    assert found[0] == BundleMember("x", str(bundle), **kinds[0]).identity()
    assert len({json.dumps(entry) for entry in found}) == 3
    assert len({entry["sha256"] for entry in found}) == 1
