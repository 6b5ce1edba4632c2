"""Real LGE-MRI: both stages trained for minutes at low resolution, the whole method scored on held-out scans."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from torch.nn.functional import avg_pool3d

from tools import REPO
from tools.data.phantoms import write_volume

CONFIGS = REPO / "bundles/vnet_atrial_mri/configs"
SPLIT = CONFIGS / "split_crops48.json"
FIELD_OF_VIEW = (288, 288, 48)  # voxels of 1.25 mm
SIZES = {"pixdim": [2.0, 2.0, 2.0], "patch_size": [80, 48, 32], "coarse_pixdim": [5.0, 5.0, 5.0]}


def halve(path: Path) -> torch.Tensor:
    """Means over blocks of 2 x 2 x 2 voxels; the array keeps the order in which the challenge stored it."""
    volume = torch.from_numpy(np.asarray(nib.load(path).dataobj, np.float32))
    return avg_pool3d(volume[None], 2)[0]


@pytest.fixture(scope="module")
def full_field(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crops at 1.25 mm, each at a random place of an else empty field of view: the locator has to find them."""
    folder = tmp_path_factory.mktemp("left_atrium")
    rng = np.random.default_rng(0)
    names = json.loads(SPLIT.read_text())
    for name in sorted(names["training"] + names["validation"]):
        case = real_data / "left_atrium" / name
        image, label = halve(case / "lgemri.nii.gz"), halve(case / "laendo.nii.gz") > 0.5
        start = [rng.integers(0, full - size + 1) for full, size in zip(FIELD_OF_VIEW, image.shape, strict=True)]
        place = tuple(slice(a, a + size) for a, size in zip(start, image.shape, strict=True))
        for file, part in (("lgemri.nrrd", image), ("laendo.nrrd", label)):
            volume = np.zeros(FIELD_OF_VIEW, np.uint8)
            volume[place] = part.numpy().astype(np.uint8)
            write_volume(folder / name / file, volume, spacing=(1.25, 1.25, 1.25))
    return folder


@pytest.mark.nightly
def test_short_training_on_real_scans_finds_and_segments_the_atrium(full_field: Path, tmp_path: Path) -> None:
    common = {"dataset_dir": str(full_field), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), **SIZES}
    train = {**common, "split_file": str(SPLIT), "val_interval": 10}
    files = {name: str(CONFIGS / f"{name}.yaml") for name in ("train", "train_locator", "evaluate")}
    start = time.process_time()
    locator = {"coarse_size": [80, 80, 16], "max_epochs": 10}
    run("training", config_file=[files["train"], files["train_locator"]], **train, **locator)
    run("training", config_file=files["train"], **train, max_epochs=55)
    run("evaluating", config_file=[files["train"], files["evaluate"]], **common, split_file=str(SPLIT))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["atrium_found"] == "True" for row in rows)
    assert np.mean([float(row["dice"]) for row in rows]) >= 0.75
    assert time.process_time() - start < 3 * 15 * 60  # 15 minutes of two cores, and some air
