"""ensemble_kd_kits_ct on real scans: kidney labels with synthetic CT, a real CT, and cardiac MRI of real patients."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import set_determinism

from tests.conftest import NamedPath, config_files
from tests.support.runs import run
from tools.experiments.ensemble_kd_kits_ct.synthetic_ct import synthetic_ct

BUNDLE = "ensemble_kd_kits_ct"
STRUCTURES = ("RV", "MYO", "LV")


def voxels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(path).dataobj)


def test_label_returns_to_its_grid(real_data: Path) -> None:
    """What training makes of a KiTS label, slices first, comes back as that label but for its border."""
    file = real_data / "kidney/labels/case_00004/segmentation.nii.gz"
    training, inference = ConfigParser(), ConfigParser()
    training.read_config(config_files(BUNDLE, "train"))
    inference.read_config(config_files(BUNDLE, "inference"))
    inference.update({"device": "cpu", "locate": False})
    del inference["postprocessing"]["transforms"][-1]  # it saves
    case = {"image": str(file), "label": str(file)}
    scan = inference.get_parsed_content("preprocessing")({"image": str(file)})
    label = _label(training, case)
    assert label.shape[1:] == scan["image"].shape[1:]
    pred = np.stack([label[0] == value for value in range(3)]).astype(np.float32)
    scan["pred"] = MetaTensor(pred, meta=scan["image"].meta)
    found = inference.get_parsed_content("postprocessing")(scan)["pred"][0].numpy()
    expected = voxels(file)
    assert found.shape == expected.shape
    for value in (1, 2):
        sizes = (found == value).sum() + (expected == value).sum()
        assert 2 * ((found == value) & (expected == value)).sum() / sizes > 0.9


def _label(training: ConfigParser, case: dict[str, str]) -> Any:
    item: Any = dict(case)
    for transform in training.get_parsed_content("labelled")[:3]:
        item = transform(item)
    return item["label"].numpy()


def test_synthetic_ct_has_the_kidneys_of_the_patients(real_data: Path, tmp_path: Path) -> None:
    """Volumes in ml are those of the labels, and the tissue is brighter than the tumour, which is brighter than fat."""
    labels = tmp_path / "labels/case_00004"
    labels.mkdir(parents=True)
    source = real_data / "kidney/labels/case_00004/segmentation.nii.gz"
    (labels / source.name).symlink_to(source)
    folder = synthetic_ct(str(tmp_path / "labels"), str(tmp_path / "scans"), spacing=4.0) / "case_00004"
    label, image, before = (
        voxels(folder / "segmentation.nii.gz"),
        voxels(folder / "imaging.nii.gz"),
        nibabel.load(source),
    )
    size = np.abs(np.linalg.det(before.affine[:3, :3]))
    for value in (1, 2):
        true = (np.asarray(before.dataobj) == value).sum() * size
        assert (label == value).sum() * 4.0**3 == pytest.approx(true, rel=0.05)
    kidney, tumour = (image[label == value].mean() for value in (1, 2))
    assert 220 > kidney > tumour > 40
    assert -1024 <= image.min() < -900


def test_real_ct_gets_a_mask_on_its_grid(real_data: Path, tiny_weights: NamedPath, tmp_path: Path) -> None:
    file = real_data / "kidney/ct/ct_3mm.nii.gz"
    (tmp_path / "models").symlink_to(tiny_weights(BUNDLE))
    run(BUNDLE, "inference", data=file, folder=tmp_path, pixdim=[6.0, 6.0, 6.0])
    mask, scan = nibabel.load(tmp_path / "eval/ct_3mm_seg.nii.gz"), nibabel.load(file)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)


@pytest.mark.nightly
def test_members_ensemble_and_student_on_acdc(real_data: Path, tmp_path: Path) -> None:
    """Minutes of training find the heart of a held-out patient; soft labels lie on the grids of different scans."""
    split = tmp_path / "split.json"
    cases = {
        "training": ["patient001", "patient021", "patient041", "patient061"],
        "validation": ["patient081"],
        "test": ["patient002"],
    }
    split.write_text(json.dumps(cases))
    common: dict[str, Any] = {"dataset_dir": str(real_data / "acdc"), "split_file": str(split)}
    common |= {
        "ckpt_dir": str(tmp_path / "models"),
        "dropout": 0.1,
        "pixdim": [2.5, 2.5, -1.0],
        "receptive_field": 35,
        "dilated_channels": 8,
        "resnet_channels": 8,
    }
    common |= {"unet_channels": [8, 16, 32, 64], "device": "cpu", "amp": False}
    common |= {"frames": ["ED"], "names": ["dilated_dice", "resnet_dice", "unet_dice"]}
    training: dict[str, Any] = {"slice_window": 64, "dilated_window": 17}
    training |= {"max_epochs": 2, "epoch_length": 60, "batch_size": 12, "val_interval": 2, "learning_rate": 5.0e-3}

    def go(run_id: str, stems: list[str], **more: Any) -> None:
        files = [f"bundles/{BUNDLE}/configs/{stem}.yaml" for stem in stems]
        settings = common | (training if run_id == "training" else {}) | {"output_dir": str(tmp_path / "logs")} | more
        try:
            monai.bundle.run(run_id, config_file=files, logging_file=False, **settings)
        finally:
            set_determinism(None)

    for kind in ("dilated", "resnet", "unet"):
        go("training", ["train", "train_member", "acdc", f"member_{kind}"], hard_loss="dice")
    soft = tmp_path / "soft"
    go("annotating", ["inference", "ensemble", "annotate", "acdc"], output_dir=str(soft))
    assert sorted(path.name for path in soft.iterdir() if path.is_dir()) == [
        f"{name}_ED" for name in sorted(cases["training"])
    ]
    go("training", ["train", "acdc"], soft_labels=str(soft))
    dice = {}
    for name, stems in {"ensemble": ["ensemble", "acdc"], "student": ["acdc"]}.items():
        go("evaluating", ["train", "evaluate", *stems], output_dir=str(tmp_path / name))
        with (tmp_path / name / "metrics.csv").open(newline="") as table:
            (row,) = csv.DictReader(table)
        dice[name] = float(row["dice"])
    assert min(dice.values()) > 0.2, dice
