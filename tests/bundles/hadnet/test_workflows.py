"""The three stages and what comes after them, as this bundle alone has them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import NamedPath
from tests.support.runs import copy, load, run

BUNDLE = "hadnet_brats_mri"
SEQUENCES = ("flair", "t1ce", "t1", "t2")


@pytest.fixture
def data(phantoms: NamedPath, tmp_path: Path) -> Path:
    """A copy of the phantoms that may be changed."""
    return copy(phantoms(BUNDLE), tmp_path / "data")


@pytest.fixture
def folder(tiny_weights: NamedPath, tmp_path: Path) -> Path:
    copy(tiny_weights(BUNDLE), tmp_path / "run/models")
    return tmp_path / "run"


def array(path: Path) -> NDArray[Any]:
    return np.asarray(nibabel.load(path).dataobj)


def masks(folder: Path) -> dict[str, NDArray[Any]]:
    return {path.name: array(path) for path in sorted(folder.rglob("*_tumour.nii.gz"))}


def test_three_commands_chain_by_file_names(data: Path, tmp_path: Path) -> None:
    """From an empty folder of weights; the outputs of one stage are the inputs of the next."""
    for stage in ("pretrain_teacher", "pretrain_student", "train"):
        run(BUNDLE, stage, data=data, folder=tmp_path / "run", max_epochs=1)
    left = {path.name: path for path in (tmp_path / "run/models").iterdir()}
    assert set(left) == {
        "model.pt",
        "pretrained_student.pt",
        "teacher_model.pt",
        "student_training_state.pt",
        "teacher_training_state.pt",
        "training_state.pt",
    }
    channels = {
        name: load(path)["encoder.0.1.conv.weight"].shape[1] for name, path in left.items() if "state" not in name
    }
    assert channels == {"model.pt": 3, "pretrained_student.pt": 3, "teacher_model.pt": 4}
    before, after = load(left["pretrained_student.pt"]), load(left["model.pt"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_student_never_opens_a_withheld_file(data: Path, folder: Path) -> None:
    """Neither in pre-training, nor when it is scored, nor when it segments: there are no such files."""
    for file in data.rglob("*_t1ce.nii.gz"):
        file.unlink()
    run(BUNDLE, "pretrain_student", data=data, folder=folder, max_epochs=1)
    run(BUNDLE, "evaluate", data=data, folder=folder)
    run(BUNDLE, "inference", data=data, folder=folder)
    with pytest.raises(Exception, match="Failed to instantiate") as caught:
        run(BUNDLE, "pretrain_teacher", data=data, folder=folder)
    assert "t1ce is missing" in str(caught.value.__cause__)


def test_any_subset_of_sequences(data: Path, tmp_path: Path) -> None:
    """A teacher with FLAIR and post-contrast T1 teaches a student with FLAIR; other files are not there."""
    for file in [*data.rglob("*_t1.nii.gz"), *data.rglob("*_t2.nii.gz")]:
        file.unlink()
    for stage in ("pretrain_teacher", "pretrain_student", "train", "evaluate", "inference"):
        epochs = {"max_epochs": 1} if "train" in stage else {}
        run(BUNDLE, stage, data=data, folder=tmp_path / "run", sequences=["flair", "t1ce"], withheld=["t1ce"], **epochs)
    assert load(tmp_path / "run/models/model.pt")["encoder.0.1.conv.weight"].shape[1] == 1
    assert len(masks(tmp_path / "run/eval")) == 5


def test_case_without_tumour_trains_and_is_scored(data: Path, folder: Path) -> None:
    for file in data.rglob("*_seg.nii.gz"):
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)
    run(BUNDLE, "train", data=data, folder=folder, max_epochs=1)
    assert all(torch.isfinite(value).all() for value in load(folder / "models/model.pt").values())
    run(BUNDLE, "evaluate", data=data, folder=folder)
    with (folder / "eval/metrics.csv").open(newline="") as table:
        assert all(row["dice_WT"] in ("0.0", "1.0") for row in csv.DictReader(table))


@pytest.mark.parametrize("held", [SEQUENCES, ("flair", "t1", "t2")])
def test_volume_of_sequences_gives_the_mask_of_the_files(held: tuple[str, ...], data: Path, folder: Path) -> None:
    """As MONAI Label may be given scans: with all sequences, or with the student's."""
    case = sorted(data.iterdir())[0]
    files = [nibabel.load(case / f"{case.name}_{name}.nii.gz") for name in held]
    stacked = folder.parent / "stacked"
    stacked.mkdir()
    volume = np.stack([np.asanyarray(file.dataobj) for file in files], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, files[0].affine), stacked / "P1.nii.gz")
    run(BUNDLE, "inference", data=stacked, folder=folder, output_dir=str(folder / "one"))
    run(BUNDLE, "inference", data=case, folder=folder, output_dir=str(folder / "other"))
    (one,), (other,) = (masks(folder / name).values() for name in ("one", "other"))
    np.testing.assert_array_equal(one, other)
    assert list(masks(folder / "one")) == ["P1_tumour.nii.gz"]


def test_uncertainty_of_each_region(data: Path, folder: Path) -> None:
    """Maps beside the masks, on their grid, 0 to 100, 0 outside the brain; the same in a second run."""
    case = sorted(data.iterdir())[0]
    for name in ("one", "two"):
        run(BUNDLE, "uncertainty_inference", data=case, folder=folder, output_dir=str(folder / name))
    flair = array(case / f"{case.name}_flair.nii.gz")
    for region in ("enhance", "core", "whole"):
        file = f"{case.name}_unc_{region}.nii.gz"
        found, again = (array(folder / name / file) for name in ("one", "two"))
        np.testing.assert_array_equal(found, again)
        assert found.shape == flair.shape
        assert found.dtype == np.float32
        assert 0 <= found.min() < found.max() <= 100
        assert found[:2].max() == 0
    assert len(list((folder / "one").rglob("*.nii.gz"))) == 4
