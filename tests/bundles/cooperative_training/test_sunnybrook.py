"""Slices of the Sunnybrook data as a test set of the cooperative-training bundle."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cooperative_training.checks import check_stacks
from cooperative_training.data import evaluation_cases
from cooperative_training.shared.validation import check_cases
from tools.experiments.cooperative_training_acdc_mri.sunnybrook import sunnybrook

SCAN = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24).clip(0, 255).astype(np.uint8)
MASK = np.zeros((20, 24), np.uint8)
MASK[4:9, 10:18] = 255


def png(path: Path, array: NDArray[np.uint8], *, grey: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array if grey else np.stack([array] * 3, -1)).save(path)


def source(folder: Path, mask: NDArray[np.uint8] = MASK) -> Path:
    """Two slices, one of them stored with three equal channels."""
    for name, grey in (("SC-HF-I-01-IM-0001-0048.dcm.png", False), ("SC-N-02-IM-0001-0088.dcm.png", True)):
        png(folder / "images" / name, SCAN, grey=grey)
        png(folder / "labels" / name, mask, grey=grey)
    return folder


def test_slices_become_volumes_that_the_evaluation_reads(tmp_path: Path) -> None:
    """Rows of an image are y, columns x; the left ventricle is 3; nothing but ES is expected of a patient."""
    output = sunnybrook(str(source(tmp_path / "png")), str(tmp_path / "set"), pixel=1.4, thickness=10)
    cases = evaluation_cases({"training": [], "validation": [], "test": []}, test_sets={"sunnybrook": str(output)})
    names = ["SC-HF-I-01-IM-0001-0048", "SC-N-02-IM-0001-0088"]
    assert [(case["set"], case["patient"], case["frame"]) for case in cases] == [
        ("sunnybrook", name, "ES") for name in names
    ]
    check_cases([cases], label_values=[[0, 1, 2, 3]])
    check_stacks([cases])
    for case in cases:
        image, label = (nibabel.load(case[key]) for key in ("image", "label"))
        assert image.header.get_zooms() == label.header.get_zooms() == pytest.approx((1.4, 1.4, 10))
        np.testing.assert_array_equal(np.asarray(image.dataobj), SCAN.T[..., None])
        np.testing.assert_array_equal(np.asarray(label.dataobj), MASK.T[..., None] // 255 * 3)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no images/\*\.png"):
        sunnybrook(str(tmp_path), str(tmp_path / "set"))


def test_image_without_mask(tmp_path: Path) -> None:
    folder = source(tmp_path / "png")
    (folder / "labels/SC-N-02-IM-0001-0088.dcm.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/SC-N-02-IM-0001-0088\.dcm\.png does not exist"):
        sunnybrook(str(folder), str(tmp_path / "set"))


@pytest.mark.parametrize("mask", [MASK // 2, MASK[:19]], ids=["values", "size"])
def test_mask_that_does_not_fit(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SC-HF-I-01-IM-0001-0048\.dcm\.png: the mask must be of 0 and 255"):
        sunnybrook(str(source(tmp_path / "png", mask)), str(tmp_path / "set"))


def test_coloured_image(tmp_path: Path) -> None:
    folder = source(tmp_path / "png")
    coloured = np.stack([SCAN, SCAN, 255 - SCAN], -1)
    png(folder / "images/SC-HF-I-01-IM-0001-0048.dcm.png", coloured)
    with pytest.raises(ValueError, match=r"0048\.dcm\.png is not grey"):
        sunnybrook(str(folder), str(tmp_path / "set"))


def test_size_of_voxels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 8"):
        sunnybrook(str(source(tmp_path / "png")), str(tmp_path / "set"), pixel=0, thickness=8)
