"""The method on real scans: five programs' masks as an ensemble, and teachers who annotate another year's scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import config_files, random_weights
from tests.support.runs import run
from tools.experiments.lachinov_distillation_brats_mri.real import FUSIONS, MEMBERS, PATIENT, fusion, transfer

BUNDLE = "lachinov_distillation_brats_mri"


@pytest.mark.parametrize(
    ("place", "order", "values"),
    [
        ("brats15_flair_t1ce/brats_2013_pat0004_1", ["NCR", "ED", "NCR", "ET"], [0, 1, 2, 1, 4]),
        ("brats_4mod/BRATS_009", ["ED", "NCR", "ET"], [0, 2, 1, 4]),
    ],
)
def test_label_returns_to_its_grid(place: str, order: list[str], values: list[int], real_data: Path) -> None:
    """What training makes of a label, taken for the network's answer, comes back as the very label; BraTS values."""
    folder = real_data / place
    case = {"image": str(folder / "flair.nii.gz"), "label": str(folder / "seg.nii.gz"), "label_order": order}
    training, inference = ConfigParser(), ConfigParser()
    training.read_config(config_files(BUNDLE, "train"))
    inference.read_config(config_files(BUNDLE, "inference"))
    for parser in (training, inference):
        parser.update({"sequences": ["flair"], "device": "cpu"})
    inference.update({"minimum_enhancing": 0, "fraction": 0})
    del inference["postprocessing"]["transforms"][-3:]  # those that save
    scan = inference.get_parsed_content("preprocessing")({"image": case["image"]})
    regions = training.get_parsed_content("validate::preprocessing")(case)["label"]
    assert regions.shape[1:] == scan["image"].shape[1:]
    scan["pred"] = type(scan["image"])(regions.float(), meta=scan["image"].meta)
    found = inference.get_parsed_content("postprocessing")(scan)["pred"]
    expected = np.asarray(values)[np.asarray(nibabel.load(case["label"]).dataobj)]
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found[0].numpy(), expected)
    np.testing.assert_allclose(found.affine, nibabel.load(case["label"]).affine)


def test_student_segments_a_whole_brain_on_its_grid(real_data: Path, tmp_path: Path) -> None:
    """Four sequences at 1 mm; small negative values outside the brain do no harm."""
    (tmp_path / "models").mkdir()
    random_weights(BUNDLE, tmp_path / "models", channels=[8, 8, 8, 8])
    source = real_data / "tcga_lgg_4mod"
    run(BUNDLE, "inference", data=source, folder=tmp_path, pixdim=[1.0, 1.0, 1.0], flips=[[]], save_probabilities=True)
    scan = nibabel.load(source / PATIENT / "t1.nii.gz")
    mask, soft = (
        nibabel.load(tmp_path / "eval" / PATIENT / f"{PATIENT}_{kind}.nii.gz") for kind in ("tumour", "probabilities")
    )
    assert mask.shape == scan.shape
    assert soft.shape == (*scan.shape, 3)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == soft.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 4}


def test_five_programs_annotate_as_published_fusions_do(real_data: Path, tmp_path: Path) -> None:
    """The mean of five label maps is their majority vote; two of five enhance, so the ensemble does not."""
    found = fusion(real_data, tmp_path, commands=[])
    masks = np.stack(
        [
            np.asarray(nibabel.load(real_data / "tcga_lgg_4mod" / PATIENT / f"auto_{name}.nii.gz").dataobj)
            for name in MEMBERS
        ]
    )
    votes = np.stack([(masks == value).sum(0) for value in (0, 1, 2, 4)])
    label = np.asarray(nibabel.load(tmp_path / PATIENT / f"{PATIENT}_label.nii.gz").dataobj)
    np.testing.assert_array_equal(label, np.array([0, 1, 2, 4])[votes.argmax(0)])
    assert found["voxels_of_enhancing_tumour"]["ensemble"] == 0
    for name in FUSIONS:
        assert min(found["dice"]["ensemble"][name].values()) > 0.98
        others = [np.mean(list(found["dice"][member][name].values())) for member in MEMBERS]
        assert np.mean(list(found["dice"]["ensemble"][name].values())) > max(others)
    assert found["voxels_on_which_members_differ"] == int((votes.max(0) < len(MEMBERS)).sum())


@pytest.mark.nightly
def test_teachers_of_one_year_annotate_the_scans_of_another(real_data: Path, tmp_path: Path) -> None:
    """FLAIR alone, three patients, a few steps: the stages run on real scans; two patients prove no accuracy."""
    commands: list[str] = []
    found: dict[str, Any] = transfer(real_data, tmp_path, commands=commands, epochs=5)["dice_WT"]
    assert found.keys() == {"ensemble", "resunet", "student"}
    assert all(0 <= dice <= 1 for scores in found.values() for dice in scores.values())
    listed = json.loads((tmp_path / "pseudo_labels/datalist.json").read_text())["training"]
    assert [case["label_source"] for case in listed] == ["ensemble", "ensemble"]
    assert len(commands) == 7
    assert min(found["ensemble"].values()) > 0.3
