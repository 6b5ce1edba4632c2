"""The method on real scans: two to four sequences, with and without labels, with and without enhancing tumour."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage
from numpy.typing import NDArray

from tests.conftest import config_files, random_weights
from tests.support.runs import load, run

BUNDLE = "hadnet_brats_mri"
TWO: dict[str, Any] = {"sequences": ["flair", "t1ce"], "label_order": ["NCR", "ED", "NCR", "ET"]}  # BraTS 2015
DECATHLON: dict[str, Any] = {"label_order": ["ED", "NCR", "ET"]}
WHOLE: dict[str, Any] = {"size": [160, 192, 160], "pixdim": [1.0, 1.0, 1.0]}


def labels(path: Path) -> NDArray[Any]:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture
def patients(real_data: Path) -> Path:
    return real_data / "brats15_flair_t1ce"


@pytest.fixture
def low_grade(real_data: Path, tmp_path: Path) -> Path:
    """A data set of one patient: four sequences and a fusion of automatic labels, which has no enhancing tumour."""
    source, target = real_data / "tcga_lgg_4mod/TCGA-DU-7294", tmp_path / "data/TCGA-DU-7294"
    target.mkdir(parents=True)
    for name in ("flair", "t1ce", "t1", "t2"):
        shutil.copy(source / f"{name}.nii.gz", target)
    shutil.copy(source / "auto_mav.nii.gz", target / "seg.nii.gz")
    return target.parent


@pytest.mark.parametrize("place", ["brats15_flair_t1ce/brats_2013_pat0004_1", "brats_4mod/BRATS_009"])
def test_label_returns_to_its_grid(place: str, real_data: Path) -> None:
    """What training makes of a label, taken for the network's answer, comes back as the very label; BraTS values."""
    settings, values = (TWO, [0, 1, 2, 1, 4]) if "brats15" in place else (DECATHLON, [0, 2, 1, 4])
    folder = real_data / place
    case = {"image": str(folder / "flair.nii.gz"), "label": str(folder / "seg.nii.gz")}
    training, inference = ConfigParser(), ConfigParser()
    training.read_config(config_files(BUNDLE, "train"))
    inference.read_config(config_files(BUNDLE, "inference"))
    for parser in (training, inference):
        parser.update({**settings, "device": "cpu"})
    del inference["postprocessing"]["transforms"][-4:]  # those that save
    scan = inference.get_parsed_content("preprocessing")({"image": case["image"]})
    label = training.get_parsed_content("validate::preprocessing")(case)["label"]
    scan["pred"] = scan["image"][:1].new_empty(())
    logits = 100 * torch.nn.functional.one_hot(label[0].long(), 4).movedim(-1, 0).float()
    scan["pred"] = type(scan["image"])(logits, meta=scan["image"].meta)
    found = inference.get_parsed_content("postprocessing")(scan)["pred"]
    expected = np.asarray(values)[labels(folder / "seg.nii.gz")]
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found[0].numpy(), expected)
    np.testing.assert_allclose(found.affine, nibabel.load(folder / "seg.nii.gz").affine)


def test_student_segments_without_contrast_agent(low_grade: Path, tmp_path: Path) -> None:
    """A whole brain at 1 mm in one pass; the withheld file is not there; small negative values do no harm."""
    (low_grade / "TCGA-DU-7294/t1ce.nii.gz").unlink()
    (tmp_path / "models").mkdir()
    random_weights(BUNDLE, tmp_path / "models", filters=4)
    run(BUNDLE, "inference", data=low_grade, folder=tmp_path, **WHOLE)
    mask = nibabel.load(tmp_path / "eval/TCGA-DU-7294/TCGA-DU-7294_tumour.nii.gz")
    scan = nibabel.load(low_grade / "TCGA-DU-7294/flair.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(labels(mask.get_filename()))) <= {0, 1, 2, 4}


def test_absent_enhancing_tumour_is_scored(low_grade: Path, tmp_path: Path) -> None:
    """Nothing enhances in the reference: its Dice is 0 or, when nothing was found either, 1."""
    (tmp_path / "models").mkdir()
    random_weights(BUNDLE, tmp_path / "models", filters=4)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": [], "validation": ["TCGA-DU-7294"]}))
    run(BUNDLE, "evaluate", data=low_grade, folder=tmp_path, split_file=str(split), **WHOLE)
    with (tmp_path / "eval/metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    found = LoadImage(image_only=True)(tmp_path / "eval/predictions/TCGA-DU-7294/TCGA-DU-7294_tumour.nii.gz")
    assert float(row["dice_ET"]) == (0.0 if (found == 4).any() else 1.0)
    assert row["hd95_ET"] == ("inf" if (found == 4).any() else "nan")
    assert 0 <= float(row["dice_WT"]) <= 1
    assert np.isfinite(float(row["hd95_WT"]))


@pytest.mark.nightly
def test_three_stages(patients: Path, tmp_path: Path) -> None:
    """Teacher with FLAIR and post-contrast T1, student with FLAIR alone; three patients train, the fourth is held out.

    A few steps on three patients prove no accuracy. They show that the stages run on real scans, and that the student's
    scores and masks are the same where the post-contrast files are not there.
    """
    names = sorted(folder.name for folder in patients.iterdir())
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": names[:3], "validation": names[3:]}))
    given: dict[str, Any] = {
        **TWO,
        "split_file": str(split),
        "pixdim": [4.0, 4.0, 4.0],
        "size": [48, 48, 48],
        "filters": 8,
        "batch_size": 3,
        "val_interval": 4,
    }
    for stage in ("pretrain_teacher", "pretrain_student", "train"):
        run(BUNDLE, stage, data=patients, folder=tmp_path, **given, max_epochs=8)
    start, end = (load(tmp_path / "models" / f"{name}.pt") for name in ("pretrained_student", "model"))
    assert all(torch.isfinite(value).all() for value in end.values())
    assert not torch.equal(start["head.weight"], end["head.weight"])

    without = tmp_path / "without"
    for folder in patients.iterdir():
        shutil.copytree(folder, without / folder.name, ignore=shutil.ignore_patterns("t1ce*"))
    results = {"with": patients, "without": without}
    for name, data in results.items():
        run(BUNDLE, "evaluate", data=data, folder=tmp_path, **given, output_dir=str(tmp_path / name))
    assert (tmp_path / "with/metrics.csv").read_text() == (tmp_path / "without/metrics.csv").read_text()
    masks = [labels(path) for name in results for path in (tmp_path / name).rglob("*_tumour.nii.gz")]
    assert len(masks) == 2
    np.testing.assert_array_equal(masks[0], masks[1])
