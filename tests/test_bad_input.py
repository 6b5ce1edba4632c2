"""Bad input ends every workflow before it starts, with the case, the file and the rule; nothing is written."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import NamedPath, each_bundle, package
from tests.runs import Case, arguments, cases, command_line, copy, run
from tools import REPO

Spoil = Callable[[Case], tuple[str, str]]  # what to spoil in a case; returns the file and the rule that it breaks now
AFFINE = np.diag([-5.0, -5.0, 2.5, 1.0])


def array(path: str) -> NDArray[Any]:
    """A volume `(x, y, z)`."""
    return np.asarray(itk.array_from_image(itk.imread(path))).T


def rewrite(path: str, volume: NDArray[Any], *, spacing: float = 1.0) -> str:
    """Replaces the voxels of a NRRD file; its spacing is stretched, its origin stays."""
    old = itk.imread(path)
    image = itk.image_from_array(np.ascontiguousarray(volume.T))
    size = len(image.GetSpacing())
    image.SetSpacing([s * spacing for s in (*old.GetSpacing(), 1.0)[:size]])
    image.SetOrigin((*old.GetOrigin(), 0.0)[:size])
    itk.imwrite(image, path)
    return path


def as_nifti(path: str, volume: NDArray[Any], suffix: str = ".nii.gz") -> str:
    """Replaces a NRRD file by a NIfTI file on the phantoms' grid, whichever that is."""
    affine = np.eye(4)
    old = itk.imread(path)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0] * np.array(old.GetSpacing()))
    affine[:3, 3] = [-1.0, -1.0, 1.0] * np.array(old.GetOrigin())
    Path(path).unlink()
    target = path.replace(".nrrd", suffix)
    nibabel.save(nibabel.Nifti1Image(volume, affine), target)
    return target


def cut(path: str) -> str:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) * 2 // 3])
    return path


def with_voxel(volume: NDArray[Any], value: float) -> NDArray[Any]:
    changed = volume.astype(np.float32)
    changed[3, 4, 5] = value
    return changed


def remove(path: str) -> str:
    Path(path).unlink()
    return path


def garbage(path: str) -> str:
    Path(path).write_bytes(b"no volume at all\n" * 20)
    return path


IMAGE: dict[str, Spoil] = {
    "garbled NRRD": lambda case: (garbage(case["image"]), "image cannot be read"),
    "truncated NRRD": lambda case: (cut(case["image"]), "image cannot be read"),
    "garbled NIfTI": lambda case: (garbage(as_nifti(case["image"], array(case["image"]))), "image cannot be read"),
    "truncated nii.gz": lambda case: (cut(as_nifti(case["image"], array(case["image"]))), "image cannot be read"),
    "truncated nii": lambda case: (cut(as_nifti(case["image"], array(case["image"]), ".nii")), "image cannot be read"),
    "NaN": lambda case: (
        as_nifti(case["image"], with_voxel(array(case["image"]), np.nan)),
        "image holds NaN or infinite voxels",
    ),
    "infinite": lambda case: (
        as_nifti(case["image"], with_voxel(array(case["image"]), -np.inf)),
        "image holds NaN or infinite voxels",
    ),
    "2D": lambda case: (rewrite(case["image"], array(case["image"])[:, :, 8]), "image must be a 3D volume"),
    "4D": lambda case: (
        as_nifti(case["image"], np.stack([array(case["image"])] * 2, axis=-1)),
        "image must be a 3D volume",
    ),
}
PAIR: dict[str, Spoil] = {
    "missing image": lambda case: (remove(case["image"]), "image is missing"),
    "missing label": lambda case: (remove(case["label"]), "label is missing"),
    "garbled label": lambda case: (garbage(case["label"]), "label cannot be read"),
    "truncated label": lambda case: (cut(as_nifti(case["label"], array(case["label"]))), "label cannot be read"),
    "shape": lambda case: (rewrite(case["label"], array(case["label"])[:, :-1]), "differs from the image's"),
    "affine": lambda case: (
        rewrite(case["label"], array(case["label"]), spacing=1.1),
        "affine differs from the image's by up to",
    ),
    "foreign value": lambda case: (
        rewrite(case["label"], np.where(array(case["label"]) > 0, 77, 0).astype(np.uint8)),
        "label values must be among",
    ),
    "fractional value": lambda case: (
        as_nifti(case["label"], with_voxel(array(case["label"]) > 0, 0.5)),
        "label values must be among",
    ),
    "NaN in label": lambda case: (
        as_nifti(case["label"], with_voxel(array(case["label"]) > 0, np.nan)),
        "label values must be among",
    ),
    "empty label": lambda case: (rewrite(case["label"], 0 * array(case["label"])), "label is empty"),
    "2D label": lambda case: (rewrite(case["label"], array(case["label"])[:, :, 8]), "label must be a 3D volume"),
}
SPOILT = [(workflow, name) for workflow in ("train", "evaluate", "inference") for name in IMAGE] + [
    (workflow, name) for workflow in ("train", "evaluate") for name in PAIR
]


def refusal(bundle: str, workflow: str, *, data: Path, folder: Path, **overrides: Any) -> str:
    """Message of the `InputError` with which a workflow ends; asserts that the run left nothing behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        run(bundle, workflow, data=data, folder=folder, **overrides)
    error: BaseException | None = caught.value
    expected = importlib.import_module(f"{package(bundle)}.cases").InputError
    while error is not None and not isinstance(error, expected):
        error = error.__cause__
    assert error is not None, f"no InputError led to {caught.value!r}"
    assert sorted(folder.rglob("*")) == before
    return str(error)


@pytest.fixture
def data(bundle: str, phantoms: NamedPath, tmp_path: Path) -> Path:
    """A copy of the phantoms that may be spoilt."""
    return copy(phantoms(bundle), tmp_path / "data")


@pytest.fixture
def folder(bundle: str, tiny_weights: NamedPath, tmp_path: Path) -> Path:
    """Where a run finds weights and would leave its results."""
    copy(tiny_weights(bundle), tmp_path / "run/models")
    return tmp_path / "run"


@pytest.mark.parametrize(("workflow", "name"), SPOILT)
@each_bundle
def test_spoilt_case(bundle: str, workflow: str, name: str, data: Path, folder: Path) -> None:
    """One spoilt case in five is named; the others are not."""
    split = cases(bundle, data)
    case = split["validation"][0]
    file, rule = {**IMAGE, **PAIR}[name](case)
    message = refusal(bundle, workflow, data=data, folder=folder)
    assert any(all(part in line for part in (case["case"], file, rule)) for line in message.splitlines())
    assert not any(other["case"] in message for other in split["training"])


@each_bundle
def test_all_problems_at_once(bundle: str, data: Path, folder: Path) -> None:
    split = cases(bundle, data)
    files = [remove(case["label"]) for case in split["training"]]
    message = refusal(bundle, "train", data=data, folder=folder)
    assert all(file in message for file in files)
    assert "4 problem(s)" in message


@each_bundle
def test_case_in_both_data_lists(bundle: str, data: Path, folder: Path) -> None:
    split = cases(bundle, data)
    twice = {"validate#dataset#data": [*split["validation"], split["training"][0]]}
    message = refusal(bundle, "train", data=data, folder=folder, **twice)
    assert f"case {split['training'][0]['case']}: {split['training'][0]['image']}: is in two splits" in message


SPLITS: dict[str, tuple[Callable[[list[str]], str], str]] = {
    "absent": (lambda _: "", "split file does not exist"),
    "malformed": (lambda names: json.dumps({"training": names})[:-5], "is no valid JSON"),
    "no object": (lambda names: json.dumps(names), "must hold lists of case names under 'training' and 'validation'"),
    "no validation": (
        lambda names: json.dumps({"training": names}),
        "must hold lists of case names under 'training' and 'validation'",
    ),
    "one name": (
        lambda names: json.dumps({"training": names[1:], "validation": names[0]}),
        "must hold lists of case names under 'training' and 'validation'",
    ),
    "unknown": (lambda names: json.dumps({"training": names, "validation": ["nobody"]}), "case nobody"),
    "twice": (lambda names: json.dumps({"training": names, "validation": names[:1]}), "is listed twice"),
    "empty list": (lambda names: json.dumps({"training": names, "validation": []}), "holds no case"),
}


@pytest.mark.parametrize("name", SPLITS)
@each_bundle
def test_split_file(bundle: str, name: str, data: Path, folder: Path, tmp_path: Path) -> None:
    write, rule = SPLITS[name]
    names = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    file = tmp_path / "split.json"
    if name != "absent":
        file.write_text(write(names))
    message = refusal(bundle, "train", data=data, folder=folder, split_file=str(file))
    assert rule in message
    assert str(file) in message or name in ("unknown", "empty list")


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference"])
@pytest.mark.parametrize("exists", [True, False])
@each_bundle
def test_dataset_dir(bundle: str, workflow: str, exists: bool, folder: Path, tmp_path: Path) -> None:
    """Neither a folder that is not there nor an empty one is silently taken for a data set."""
    target = tmp_path / "nowhere"
    if exists:
        target.mkdir()
    message = refusal(bundle, workflow, data=target, folder=folder)
    assert str(target) in message
    assert ("does not exist" in message) != exists


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: path.unlink(), "there are no such weights"),
    "truncated": (lambda path: cut(str(path)), "cannot be read as a state dict"),
    "nested": (
        lambda path: torch.save({"model_state": torch.load(path, weights_only=True)}, path),
        "is no flat state dict of tensors",
    ),
    "of another network": (lambda path: torch.save({"weight": torch.zeros(1)}, path), "does not fit the chosen"),
}


@pytest.mark.parametrize("workflow", ["evaluate", "inference"])
@pytest.mark.parametrize("name", WEIGHTS)
@each_bundle
def test_weights(bundle: str, workflow: str, name: str, data: Path, folder: Path) -> None:
    """Every file of weights is checked before the first scan is segmented."""
    spoil, rule = WEIGHTS[name]
    for path in sorted((folder / "models").glob("*.pt")):
        good = path.read_bytes()
        spoil(path)
        message = refusal(bundle, workflow, data=data, folder=folder)
        assert str(path) in message
        assert rule in message
        path.write_bytes(good)


def test_weights_of_another_variant(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Plain weights do not fit the network with attention: the message says what is missing."""
    bundle = "vnet_atrial_mri"
    copy(tiny_weights(bundle), tmp_path / "models")
    variant = {"network_def#attention": True, "network_def#attention_reduction": 2}
    message = refusal(bundle, "inference", data=phantoms(bundle), folder=tmp_path, **variant)
    assert f"{tmp_path / 'models/model.pt'}: does not fit the chosen VNet: missing encoder.0.attention." in message


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference"])
@each_bundle
def test_patch_size(bundle: str, workflow: str, data: Path, folder: Path) -> None:
    """A patch that the network cannot halve often enough is refused before anything is loaded."""
    message = refusal(bundle, workflow, data=data, folder=folder, patch_size=[32, 40, 16])
    assert "patch_size: must be multiples of 16, got [32, 40, 16]" in message


@each_bundle
def test_command_ends_plainly(bundle: str, data: Path, folder: Path) -> None:
    """On the command line the message is the last thing to be read, without a traceback, and the command fails."""
    case = cases(bundle, data)["training"][0]
    given = arguments(bundle, "train", data=data, folder=folder)
    command = [sys.executable, "-m", "monai.bundle", *command_line(given)]
    file = remove(case["label"])
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    first, second = done.stderr.rstrip().splitlines()[-2:]
    assert first == "1 problem(s) in the input, nothing was started:"
    assert second == f"  case {case['case']}: {file}: label is missing"
