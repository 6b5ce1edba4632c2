"""Resampling of ensemble_kd_kits_ct: against the reference implementation, and where voxels end up in space."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd
from scipy import ndimage

from ensemble_kd.resampling import CornerAlignedZoomd, SmoothedSpacingd, zoom_back
from ensemble_kd.shared.spacing import OwnKeysSpacingd
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
PIXDIM = (1.5, 1.5, 2.5)
CASES = ("a", "b", "c")
each_case = pytest.mark.parametrize("case", CASES)

Transform = SmoothedSpacingd | CornerAlignedZoomd


def scan(values: Any, spacing: Any, *, origin: tuple[float, ...] = (-7.0, 30.0, 5.0)) -> MetaTensor:
    """A volume of one channel, of this spacing in mm."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin)
    return MetaTensor(torch.as_tensor(np.asarray(values))[None], affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


def golden(case: str) -> dict[Hashable, Any]:
    spacing = GOLDEN[f"resample.{case}.spacing"]
    return {"image": scan(GOLDEN["resample.volume"], spacing), "label": scan(GOLDEN["resample.mask"], spacing)}


@each_case
def test_zoom_of_the_reference(case: str) -> None:
    """All axes are smoothed there, also those of b, which have the new spacing already."""
    transform = CornerAlignedZoomd(["image", "label"], PIXDIM, mode=["spline", "nearest"], smooth_all=True)
    found = transform(golden(case))
    assert found["image"].dtype == torch.float32
    np.testing.assert_allclose(found["image"][0], GOLDEN[f"resample.{case}.image"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found["label"][0], GOLDEN[f"resample.{case}.mask_out"])


@each_case
def test_way_back_of_the_reference(case: str) -> None:
    """By the transform's inverse, by `Invertd` for what a network made of the image, and by the function."""
    item = golden(case)
    transform = CornerAlignedZoomd("image", PIXDIM)
    item = transform(item)
    channel = torch.from_numpy(GOLDEN[f"resample.{case}.image"])
    item["pred"] = MetaTensor(torch.stack([channel, -channel]))
    invert = Invertd("pred", transform, orig_keys="image", nearest_interp=False)
    found = invert(item)["pred"]
    expected = GOLDEN[f"resample.{case}.back"]
    np.testing.assert_allclose(found, np.stack([expected, -expected]), rtol=0, atol=1e-3)
    np.testing.assert_allclose(zoom_back(channel[None], expected.shape)[0], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.affine, golden(case)["image"].affine, rtol=0, atol=1e-9)
    assert not found.applied_operations
    inverted = transform.inverse({"image": transform(golden(case))["image"]})["image"]
    assert inverted.shape == (1, 20, 24, 18)
    torch.testing.assert_close(inverted.affine, golden(case)["image"].affine, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing", [PIXDIM, (1.5004, 1.5, 2.4996)])
@pytest.mark.parametrize("transform", [CornerAlignedZoomd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM, mode=3)])
def test_right_spacing_changes_nothing(transform: Transform, spacing: tuple[float, ...]) -> None:
    """Unlike in the reference, which smooths by half a voxel; rounding in the header is no other spacing."""
    item: dict[Hashable, Any] = {"image": scan(GOLDEN["resample.volume"], spacing)}
    found = transform(item)["image"]
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
    zoomed = CornerAlignedZoomd("image", PIXDIM)({"image": scan(noise, (1.5, 1.5, 1))})["image"][0]
    np.testing.assert_allclose(zoomed, ndimage.zoom(smooth, (1, 1, 0.4), order=3, mode="nearest"), rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("transform", [CornerAlignedZoomd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM, mode=3)])
def test_integers_become_float_first(transform: Transform) -> None:
    """The reference rounds integer scans after every step, by up to 3.6 HU."""
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
@pytest.mark.parametrize(
    "transform",
    [CornerAlignedZoomd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM, mode=3)],
)
def test_values_stay_where_they_are(transform: Transform, turned: bool) -> None:
    """Voxels that hold their position still do, so affine and grid agree; but for the rim, where slopes end."""
    image = scan(np.zeros((40, 44, 36)), (0.8, 0.9, 1.7))
    if turned:
        angle = torch.tensor(0.3, dtype=torch.float64)
        turn = torch.eye(4, dtype=torch.float64)
        turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        image.affine = turn @ image.affine
    image = MetaTensor(positions(image), affine=image.affine)
    found = transform({"image": image})["image"]
    inner = (slice(None), *(slice(6, -6),) * 3)
    torch.testing.assert_close(found[inner].as_tensor().double(), positions(found)[inner], rtol=0, atol=2e-3)


def test_true_spacing_from_corner_to_corner() -> None:
    """20, 24 and 18 voxels become 11, 13 and 36; first and last voxels keep their places."""
    item = golden("a")
    found = CornerAlignedZoomd("image", PIXDIM)(item)["image"]
    assert found.shape == (1, 11, 13, 36)
    assert found.pixdim.tolist() == pytest.approx([0.8 * 19 / 10, 0.8 * 23 / 12, 5 * 17 / 35], abs=1e-6)
    ends = [positions(volume)[:, [0, -1], [0, -1], [0, -1]] for volume in (found, item["image"])]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)
    assert found.meta["filename_or_obj"] == "scan.nii.gz"


@pytest.mark.parametrize("size", [(7, 1, 9), (1, 8, 1)])
def test_axes_of_one_voxel(size: tuple[int, int, int]) -> None:
    """They have no length between corners: the spacing is the one asked for."""
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    transform = CornerAlignedZoomd("image", PIXDIM)
    found = transform({"image": scan(values, (1.5, 1.2, 4))})
    voxels = [round(n * old / new) for n, old, new in zip(size, (1.5, 1.2, 4), PIXDIM, strict=True)]
    assert list(found["image"].shape[1:]) == voxels
    single = [axis for axis in range(3) if 1 in (size[axis], voxels[axis])]
    assert [found["image"].pixdim[axis].item() for axis in single] == pytest.approx([PIXDIM[axis] for axis in single])
    assert transform.inverse(found)["image"].shape == (1, *size)


def test_labels_go_back_without_new_values() -> None:
    """To the nearest voxel from corner to corner, as SciPy's; `Invertd` asks for it or the transform knows it."""
    label, transform = golden("a")["label"], CornerAlignedZoomd("label", PIXDIM, mode="nearest")
    small = transform({"label": label})
    scales = [old / new for old, new in zip(label.shape[1:], small["label"].shape[1:], strict=True)]
    expected = ndimage.zoom(small["label"][0].numpy(), scales, order=0, mode="nearest")
    found = transform.inverse(transform({"label": label}))["label"]
    np.testing.assert_array_equal(found[0], expected)
    image_transform = CornerAlignedZoomd("image", PIXDIM)
    item = image_transform({"image": golden("a")["image"], "pred": MetaTensor(small["label"].as_tensor())})
    inverted = Invertd("pred", image_transform, orig_keys="image", nearest_interp=True)(item)["pred"]
    np.testing.assert_array_equal(inverted[0], expected)


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
    for transform in (CornerAlignedZoomd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM)):
        item = golden("a") | {"image_path": "folder"}
        found = transform(item)
        np.testing.assert_array_equal(item["image"][0], GOLDEN["resample.volume"])
        assert not item["image"].applied_operations
        assert found["label"] is item["label"]
        assert found["image_path"] == "folder"


def test_channels_are_resampled_one_by_one() -> None:
    first = golden("a")["image"]
    parts = [first.as_tensor(), first.as_tensor().flip(1)]
    both = MetaTensor(torch.cat(parts), affine=first.affine)
    for transform in (CornerAlignedZoomd("image", PIXDIM), SmoothedSpacingd("image", PIXDIM)):
        found = transform({"image": both})["image"]
        alone = [transform({"image": MetaTensor(part, affine=first.affine)})["image"] for part in parts]
        torch.testing.assert_close(
            found.as_tensor(), torch.cat([volume.as_tensor() for volume in alone]), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", [CornerAlignedZoomd, SmoothedSpacingd])
@pytest.mark.parametrize("pixdim", [(1.5, 1.5), (1.5, 1.5, 0), (1.5, -1.5, 2.5), (1.5, float("nan"), 2.5)])
def test_bad_spacing(kind: type[Transform], pixdim: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"pixdim: must be three positive numbers, in mm, got \[1.5"):
        kind("image", pixdim)


def test_bad_mode() -> None:
    with pytest.raises(InputError, match="mode: must be spline or nearest, got spline, bilinear"):
        CornerAlignedZoomd(["image", "label"], PIXDIM, mode=["spline", "bilinear"])


def test_scan_too_thin() -> None:
    with pytest.raises(InputError, match=r"scan.nii.gz: its \(4, 4, 1\) voxels are too thin"):
        CornerAlignedZoomd("image", PIXDIM)({"image": scan(np.zeros((4, 4, 1)), (1, 1, 1))})
