"""The brain's box, and intensities of student and cascaded teacher, by hand."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, DivisiblePadd, Invertd

from lachinov_distillation.shared.validation import InputError
from lachinov_distillation.transforms import CropBraind, NormalizeClippedd, NormalizePositived


def row(*values: float) -> torch.Tensor:
    """A volume of one channel with these voxels along its first axis."""
    return torch.tensor(values).view(1, -1, 1, 1)


def block(shape: tuple[int, ...], *boxes: tuple[slice, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Ones in boxes, `(1, ...)`."""
    volume = torch.zeros(1, *shape, dtype=dtype)
    for box in boxes:
        volume[0][box] = 1
    return volume


def test_normalisation_by_hand() -> None:
    """2, 4, 4, 6 (mean 4, population deviation sqrt 2) are positive; 0 and -3 are shifted and scaled as they are."""
    volume = MetaTensor(row(2, 4, 0, 4, 6, -3), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    found = NormalizePositived("image")({"image": volume, "other": 1})
    torch.testing.assert_close(
        found["image"].as_tensor().flatten(), torch.tensor([-2.0, 0, -4, 0, 2, -7]) / 2**0.5, rtol=0, atol=1e-6
    )
    assert torch.equal(found["image"].affine, volume.affine)
    assert found["other"] == 1
    assert volume.flatten().tolist() == [2, 4, 0, 4, 6, -3]


def test_clipped_normalisation_by_hand() -> None:
    """Of the scores ∓sqrt 2 and 0, clipped to ±1: 0, 0.5 and 1, and 0 where the scan is not positive."""
    found = NormalizeClippedd("image", limit=1)({"image": row(2, 4, 0, 4, 6, -3)})["image"]
    torch.testing.assert_close(found.flatten(), torch.tensor([0, 0.5, 0, 0.5, 1, 0]), rtol=0, atol=1e-6)
    unclipped = NormalizeClippedd("image")({"image": row(2, 4, 0, 4, 6, -3)})["image"].flatten()
    root = 2**0.5
    expected = [(5 - root) / 10, 0.5, 0, 0.5, (5 + root) / 10, 0]
    torch.testing.assert_close(unclipped, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_normalisation_of_any_type_and_channel(dtype: torch.dtype) -> None:
    """Scale-free and by itself in each channel; large values lose no digits to single precision sums."""
    generator = np.random.default_rng(0)
    values = generator.integers(9000, 9100, (2, 40, 40, 40))
    values[1] = 3 * values[0] + 2
    found = NormalizePositived("image")({"image": torch.from_numpy(values).to(dtype)})["image"]
    assert found.dtype == torch.float32
    expected = (values[0] - values[0].mean()) / values[0].std()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("values", "expected"), [((0, 0, -3), [0, 0, -3]), ((0, 7, 7), [-7, 0, 0])])
def test_channel_that_cannot_be_scaled(
    values: tuple[float, ...], expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    volume = MetaTensor(torch.cat([row(*values), row(1, 2, 3)]), meta={"filename_or_obj": "X_t1.nii.gz"})
    with caplog.at_level(logging.WARNING):
        found = NormalizePositived("image")({"image": volume})["image"]
    assert found[0].flatten().tolist() == expected
    assert found[1].flatten().tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    (record,) = caplog.records
    assert record.getMessage().startswith("X_t1.nii.gz: ")


@pytest.mark.parametrize(("legacy", "kept"), [(False, (3, 4, 2)), (True, (2, 3, 1))])
def test_box_is_of_any_channel_and_can_be_undone(legacy: bool, kept: tuple[int, ...]) -> None:
    """Negative voxels count; label and scan are cut alike; after inversion all else is 0."""
    volume = torch.zeros(2, 8, 9, 7)
    volume[0, 2, 3, 4], volume[1, 4, 6, 5] = -1, 5
    item: dict[Any, Any] = {"image": MetaTensor(volume, affine=torch.eye(4)), "label": MetaTensor(volume + 1)}
    forward = Compose([CropBraind(["image", "label"], legacy_bbox=legacy), DivisiblePadd("image", k=4)])
    found = forward(item)
    window = tuple(slice(first, first + size) for first, size in zip((2, 3, 4), kept, strict=True))
    assert torch.equal(found["label"].as_tensor(), volume[(slice(None), *window)] + 1)
    assert found["image"].shape == (2, 4, 4, 4)
    assert found["image"].affine[:3, 3].tolist() == [
        2 - (4 - kept[0]) // 2,
        3 - (4 - kept[1]) // 2,
        4 - (4 - kept[2]) // 2,
    ]
    found["pred"] = torch.ones_like(found["image"])
    back = Invertd("pred", transform=forward, orig_keys="image")(found)["pred"]
    expected = block((8, 9, 7), window, dtype=torch.float32).expand(2, -1, -1, -1)
    assert torch.equal(back.as_tensor(), expected)
    assert torch.equal(back.affine, torch.eye(4, dtype=back.affine.dtype))


@pytest.mark.parametrize(
    ("legacy", "volume"), [(False, torch.zeros(1, 4, 4, 4)), (True, block((4, 4, 4), (slice(1, 2),)))]
)
def test_no_brain(legacy: bool, volume: torch.Tensor) -> None:
    scan = MetaTensor(volume, meta={"filename_or_obj": "X_t1.nii.gz"})
    with pytest.raises(InputError, match=r"X_t1\.nii\.gz: there is no brain"):
        CropBraind("image", legacy_bbox=legacy)({"image": scan})
