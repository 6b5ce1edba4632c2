"""Resampling of ensemble_kd_kits_ct: smoothing, and where voxels end up in space."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd
from scipy import ndimage

from ensemble_kd.resampling import SmoothedSpacingd
from ensemble_kd.shared.spacing import OwnKeysSpacingd
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
PIXDIM = (1.5, 1.5, 2.5)


def scan(values: Any, spacing: Any, *, origin: tuple[float, ...] = (-7.0, 30.0, 5.0)) -> MetaTensor:
    """A volume of one channel, of this spacing in mm."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin)
    return MetaTensor(torch.as_tensor(np.asarray(values))[None], affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


def golden(case: str) -> dict[Hashable, Any]:
    spacing = GOLDEN[f"resample.{case}.spacing"]
    return {"image": scan(GOLDEN["resample.volume"], spacing), "label": scan(GOLDEN["resample.mask"], spacing)}


@pytest.mark.parametrize("spacing", [PIXDIM, (1.5004, 1.5, 2.4996)])
def test_right_spacing_changes_nothing(spacing: tuple[float, ...]) -> None:
    """Unlike in the reference, which smooths by half a voxel; rounding in the header is no other spacing."""
    item: dict[Hashable, Any] = {"image": scan(GOLDEN["resample.volume"], spacing)}
    found = SmoothedSpacingd("image", PIXDIM, mode=3)(item)["image"]
    np.testing.assert_array_equal(found[0], GOLDEN["resample.volume"])
    torch.testing.assert_close(found.affine, item["image"].affine, rtol=0, atol=1e-9)


def test_smoothing_on_the_axes_that_change_only() -> None:
    """Along the third axis; by 0.5 * 2.5 / 1 voxels, with the border voxels going on outside."""
    noise = np.random.default_rng(0).standard_normal((6, 5, 24)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1.25), mode="nearest")
    found = SmoothedSpacingd("image", PIXDIM)({"image": scan(noise, (1.5, 1.5, 1))})["image"]
    expected = OwnKeysSpacingd("image", PIXDIM, mode="bilinear")({"image": scan(smooth, (1.5, 1.5, 1))})["image"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.affine, expected.affine, rtol=0, atol=0)
    assert found.shape == (1, 6, 5, 10)


@pytest.mark.parametrize("mode", ["nearest", 0])
def test_labels_are_not_smoothed(mode: str | int) -> None:
    """Nor do they get values that they had not; a second key has its own mode."""
    item = golden("a")
    item["image"] = item["label"].clone()
    found = SmoothedSpacingd(["image", "label"], PIXDIM, mode=["bilinear", mode])(item)
    expected = OwnKeysSpacingd("label", PIXDIM, mode=mode)(golden("a"))["label"]
    assert torch.equal(found["label"].as_tensor(), expected.as_tensor())
    assert set(found["label"].unique().tolist()) == {0, 1, 2}
    assert found["image"].shape == found["label"].shape
    assert len(found["image"].unique()) > 3


def test_integers_become_float_first() -> None:
    """The reference rounds integer scans after every step, by up to 3.6 HU."""
    transform = SmoothedSpacingd("image", PIXDIM, mode=3)
    values = np.random.default_rng(0).integers(-1000, 1000, (14, 12, 16))
    found = [
        transform({"image": scan(values.astype(dtype), (0.8, 0.7, 1.2))})["image"].as_tensor()
        for dtype in (np.int16, np.float32)
    ]
    assert torch.equal(*found)
    assert (found[0] != found[0].round()).any()


def positions(volume: MetaTensor) -> torch.Tensor:
    """Where every voxel lies, in mm: `(3, H, W, D)`."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in volume.shape[1:]), indexing="ij"))
    affine = volume.affine.double()
    return torch.einsum("ij,jhwd->ihwd", affine[:3, :3], grid) + affine[:3, 3].view(3, 1, 1, 1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", 3])
def test_values_stay_where_they_are(mode: str | int, turned: bool) -> None:
    """Voxels that hold their position still do, so affine and grid agree; but for the rim, where slopes end."""
    image = scan(np.zeros((40, 44, 36)), (0.8, 0.9, 1.7))
    if turned:
        angle = torch.tensor(0.3, dtype=torch.float64)
        turn = torch.eye(4, dtype=torch.float64)
        turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        image.affine = turn @ image.affine
    image = MetaTensor(positions(image), affine=image.affine)
    found = SmoothedSpacingd("image", PIXDIM, mode=mode)({"image": image})["image"]
    inner = (slice(None), *(slice(6, -6),) * 3)
    torch.testing.assert_close(found[inner].as_tensor().double(), positions(found)[inner], rtol=0, atol=2e-3)


def test_inversion_of_the_default() -> None:
    """In a chain, with the grid of the file back, and a smooth field within interpolation's error."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 2, n) for n in (40, 44, 20)), indexing="ij"))
    image = scan(np.sin(grid).sum(0).astype(np.float32), (0.8, 0.8, 3.0))
    image.affine = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ image.affine
    steps = Compose([Orientationd("image", axcodes="RAS", labels=None), SmoothedSpacingd("image", PIXDIM)])
    item = steps({"image": image})
    assert item["image"].pixdim.tolist() == pytest.approx(PIXDIM)
    item["pred"] = MetaTensor(item["image"].as_tensor().clone())
    found = Invertd("pred", steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert found.shape == image.shape
    torch.testing.assert_close(found.affine.double(), image.affine.double(), rtol=0, atol=1e-6)
    inner = (slice(None), *(slice(3, -3),) * 3)
    torch.testing.assert_close(found[inner].as_tensor(), image[inner].as_tensor(), rtol=0, atol=0.02)


def test_input_is_left_alone() -> None:
    """And other entries pass through, also MONAI Label's string `image_path`."""
    item = golden("a") | {"image_path": "folder"}
    found = SmoothedSpacingd("image", PIXDIM)(item)
    np.testing.assert_array_equal(item["image"][0], GOLDEN["resample.volume"])
    assert not item["image"].applied_operations
    assert found["label"] is item["label"]
    assert found["image_path"] == "folder"


def test_channels_are_resampled_one_by_one() -> None:
    first = golden("a")["image"]
    parts = [first.as_tensor(), first.as_tensor().flip(1)]
    both = MetaTensor(torch.cat(parts), affine=first.affine)
    transform = SmoothedSpacingd("image", PIXDIM)
    found = transform({"image": both})["image"]
    alone = [transform({"image": MetaTensor(part, affine=first.affine)})["image"] for part in parts]
    expected = torch.cat([volume.as_tensor() for volume in alone])
    torch.testing.assert_close(found.as_tensor(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixdim", [(1.5, 1.5), (1.5, 1.5, 0), (1.5, -1.5, 2.5), (1.5, float("nan"), 2.5)])
def test_bad_spacing(pixdim: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"pixdim: must be three positive numbers, in mm, got \[1.5"):
        SmoothedSpacingd("image", pixdim)
