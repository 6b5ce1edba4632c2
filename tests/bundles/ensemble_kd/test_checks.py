"""Classes and label values of ensemble_kd_kits_ct, and what a training step takes from a batch."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Identityd

from ensemble_kd.checks import check_classes, check_scans
from ensemble_kd.shared.validation import InputError
from ensemble_kd.training import label_and_soft_label
from tests.bundles.cooperative_training.test_checks import AXES, case, heart
from tests.conftest import config_files


def test_classes() -> None:
    check_classes([[0], [1, 2], [4]], ratios=[0, 5, 5], weights=[1, 1, 1])
    for groups in ([[0]], [[0], []], [[0], [1], [1]], [[0, 0], [1]]):
        with pytest.raises(InputError, match="label_groups: must be two groups or more of different label values"):
            check_classes(groups)
    with pytest.raises(InputError, match=r"ratios: must have one entry for each of 2 classes, got \[0, 5, 5\]"):
        check_classes([[0], [1]], ratios=[0, 5, 5])


def test_values_of_no_class_and_empty_labels_are_named(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    case = {"case": "a"} | {key: str(tmp_path / f"{key}.nii") for key in ("image", "label")}
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), case["label"])
    nibabel.save(nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(label.shape), np.eye(4)), case["image"])
    check_scans([[case]], spatial=Identityd("image"), labels=False)
    with pytest.raises(InputError, match=r"case a: .*label\.nii: label is empty"):
        check_scans([[case]], spatial=Identityd("image"), label_groups=[[0], [1, 2]])
    label[1, 2, 3] = 3
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), case["label"])
    check_scans([[case]], spatial=Identityd("image"), label_groups=[[0], [1], [3]])
    with pytest.raises(InputError, match=r"label values must be among \[0, 1, 2\], found \[0.0, 3.0\]"):
        check_scans([[case]], spatial=Identityd("image"), label_groups=[[0], [1, 2]])


def test_stacks_of_the_heart(tmp_path: Path) -> None:
    """With acdc.yaml, the order of the labels and the axis of the slices are checked as in the bundle of ACDC."""
    config = ConfigParser(ConfigParser.load_config_files(config_files("ensemble_kd_kits_ct", "acdc")))
    assert config.get_parsed_content("check_cases::label_order") == ["RV", "MYO", "LV"]

    def check(found: dict[str, str], order: list[str] | None) -> None:
        check_scans([[found]], spatial=Identityd("image"), label_groups=[[0], [1], [2], [3]], label_order=order)

    found = case(tmp_path, heart((1, 2, 3)))
    check(found, ["RV", "MYO", "LV"])
    with pytest.raises(
        InputError, match=r"_gt\.nii\.gz: contradicts label_order \['LV', 'MYO', 'RV'\]: value 3 is enclosed"
    ):
        check(found, ["LV", "MYO", "RV"])
    with pytest.raises(InputError, match="label_order: must order RV, MYO, LV, got"):
        check(found, ["RV", "MYO"])
    turned = case(tmp_path, heart((1, 2, 3)), AXES @ np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    with pytest.raises(InputError, match=r"frame01\.nii\.gz: slices must lie along the third axis"):
        check(turned, ["RV", "MYO", "LV"])
    check(turned, None)


def test_values_become_classes_even_where_both_have_the_same_numbers() -> None:
    parser = ConfigParser()
    parser.read_config(config_files("ensemble_kd_kits_ct", "train"))
    parser["label_groups"] = [[3, 0], [2], [1, 4]]
    group = parser.get_parsed_content("labelled::1")
    found = group({"label": torch.tensor([0.0, 1, 2, 3, 4])[None]})["label"]
    assert found.tolist() == [[0, 2, 1, 0, 2]]


def test_batch_of_a_training_step() -> None:
    batch = {key: torch.full((1, 1), value) for key, value in (("image", 1), ("label", 2), ("soft", 3), ("other", 4))}
    image, target = label_and_soft_label(batch, "cpu", True)
    assert image is batch["image"]
    assert isinstance(target, dict)
    assert target.keys() == {"label", "soft"}
    assert all(target[key] is batch[key] for key in target)
    del batch["soft"]
    image, target = label_and_soft_label(batch, torch.device("meta"), non_blocking=True)
    assert isinstance(target, torch.Tensor)
    assert image.device == target.device == torch.device("meta")
