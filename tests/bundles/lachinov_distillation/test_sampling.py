"""Ranges of patch centres, patches, scaling and swapped axes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Identityd, OneOf, Transposed

from lachinov_distillation.sampling import (
    RandCornerScaled,
    RandNoiseChannelsd,
    RandTumourPatchd,
    TumourCentresd,
    corner_scale,
    tumour_centres,
)
from lachinov_distillation.shared.validation import InputError


def row(*values: float) -> torch.Tensor:
    """A volume of one channel with these voxels along its first axis."""
    return torch.tensor(values).view(1, -1, 1, 1)


def block(shape: tuple[int, ...], *boxes: tuple[slice, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Ones in boxes, `(1, ...)`."""
    volume = torch.zeros(1, *shape, dtype=dtype)
    for box in boxes:
        volume[0][box] = 1
    return volume


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((20, 24), 3, (17, 26)),  # first and last index are 20 and 23
        ((10, 14), 3, (9, 16)),  # P / 2 + 1 = 9 is the least
        ((28, 34), 3, (25, 31)),  # S - P / 2 - 1 = 31 is the greatest
        ((20, 24), 50, (9, 31)),
        ((0, 0), 50, (9, 31)),  # no tumour
        ((0, 0), 12, (9, 31)),
        ((0, 2), 3, (9, 31)),  # too far from where centres may be
        ((38, 40), 3, (9, 31)),
    ],
)
def test_range_of_centres(box: tuple[int, int], margin: int, expected: tuple[int, int]) -> None:
    """Of a patch of 16 voxels in a volume of 40."""
    region = block((40, 40, 40), (slice(*box), slice(20, 24), slice(20, 24)))
    found = tumour_centres(region, (16, 16, 16), margin=margin)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert tuple(found[:, 0].tolist()) == expected
    if box[1]:
        assert found[:, 1].tolist() == found[:, 2].tolist() == [max(20 - margin, 9), min(23 + margin, 31)]


def test_range_of_centres_in_volumes_of_the_patch_size() -> None:
    """Of patches of 16, 15, 8 voxels in 16, 15 and 9: only the last can move at all."""
    region = block((16, 15, 9), (slice(3, 5), slice(3, 5), slice(3, 5)))
    found = tumour_centres(region, (16, 15, 8))
    assert found.tolist() == [[8, 7.5, 4], [8, 7.5, 5]]
    item: Any = {"label": region, "centres": found}
    for seed in range(5):
        patch = RandTumourPatchd("label", patch_size=(16, 15, 8)).set_random_state(seed)(item)["label"]
        assert torch.equal(patch, region[..., :8])


def test_range_is_of_the_first_region() -> None:
    whole, core = block((40, 40, 40), (slice(18, 22),) * 3), block((40, 40, 40), (slice(0, 40),) * 3)
    item = TumourCentresd(patch_size=(16, 16, 16), margin=2)({"label": torch.cat([whole, core])})
    assert item["centres"].tolist() == [[16, 16, 16], [23, 23, 23]]


def test_default_margin() -> None:
    """Of 50 voxels."""
    item = TumourCentresd(patch_size=(8, 8, 8))({"label": block((200, 8, 8), (slice(100, 104),))})
    assert item["centres"][:, 0].tolist() == [50, 153]
    assert torch.equal(tumour_centres(item["label"], (8, 8, 8)), item["centres"])


def test_patch_too_large() -> None:
    label = block((16, 16, 16), (slice(4, 8),) * 3)
    for shape in [(17, 16, 16), (16, 16)]:
        with pytest.raises(InputError, match=r"patch_size: must fit into the volume of \[16, 16, 16\]"):
            TumourCentresd(patch_size=shape)({"label": label})
    wide: dict[Any, Any] = {"image": label, "centres": torch.tensor([[8.5, 8, 8], [8.5, 8, 8]])}
    with pytest.raises(InputError, match="pad the volume before"):
        RandTumourPatchd("image", patch_size=(17, 16, 16))(wide)


def indices(shape: tuple[int, int, int]) -> torch.Tensor:
    """Each voxel's indices, `(3, H, W, D)`."""
    return torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))


def test_patches() -> None:
    """Same place in all volumes, corners evenly over the range, cut towards 0, repeatable, the rest untouched."""
    volume = MetaTensor(indices((20, 24, 16)), affine=torch.eye(4))
    centres = torch.tensor([[5.5, 9, 5], [9.5, 9, 7]], dtype=torch.float64)
    item = {"image": volume, "label": volume.clone(), "centres": centres}
    transform = RandTumourPatchd(["image", "label"], patch_size=(8, 6, 4)).set_random_state(0)
    corners = []
    for _ in range(400):
        found = transform(item)
        corner = found["image"][:, 0, 0, 0]
        assert found["image"].shape == (3, 8, 6, 4)
        assert torch.equal(found["label"], found["image"])
        assert torch.equal(found["image"].as_tensor(), indices((8, 6, 4)) + corner.as_tensor().view(3, 1, 1, 1))
        assert found["image"].affine[:3, 3].tolist() == corner.tolist()
        corners.append(corner.tolist())
    counts = [np.bincount(axis, minlength=6).tolist() for axis in np.transpose(corners)]
    assert counts[1] == [0, 0, 0, 0, 0, 0, 400]
    assert sum(counts[0][1:6]) == sum(counts[2][3:5]) == 400
    # From 1.5 to 5.5 along the first axis: 1 and 5 half as often as 2, 3 and 4.
    assert np.abs(np.subtract(counts[0][1:6], [50, 100, 100, 100, 50])).max() < 30
    assert min(counts[2][3:5]) > 160
    transform.set_random_state(0)
    assert [transform(item)["image"][:, 0, 0, 0].tolist() for _ in range(20)] == corners[:20]


def test_corner_of_an_odd_patch() -> None:
    """10.4 - 3.5 = 6.9 is cut to 6."""
    item: Any = {"image": indices((20, 20, 20)), "centres": torch.tensor([[10.4, 8, 8]] * 2, dtype=torch.float64)}
    found = RandTumourPatchd("image", patch_size=(7, 8, 8))(item)["image"]
    assert found[:, 0, 0, 0].tolist() == [6, 4, 4]


def test_scaling_by_hand() -> None:
    """1.5 o = 0, 1.5, 3, 4.5: beyond the last voxel d it is mirrored, d c b a."""
    found = corner_scale(row(1, 2, 4, 8), [1.5, 1.0, 1.0])
    assert found.flatten().tolist() == [1, 3, 8, 6]
    assert corner_scale(row(1, 2, 4, 8), [0.5, 1, 1]).flatten().tolist() == [1, 1.5, 2, 3]
    # 3 o = 0, 3, 6, 9, and 9 is 1 again in a, b, c, d, d, c, b, a, a, b, c, d.
    assert corner_scale(row(1, 2, 4, 8), [3, 1, 1]).flatten().tolist() == [1, 8, 2, 2]
    # 3.5 lies between d and its mirror image, 10.5 between c and d.
    assert corner_scale(row(1, 2, 4, 8), [3.5, 1, 1]).flatten().tolist() == [1, 8, 1, 6]


def test_scaling_of_each_axis() -> None:
    """Coordinates are scaled exactly as far as they lie inside."""
    found = corner_scale(indices((10, 12, 8)), [0.7, 1.25, 0.5])
    expected = indices((10, 12, 8)) * torch.tensor([0.7, 1.25, 0.5]).view(3, 1, 1, 1)
    inside = slice(0, 9)  # 8 * 1.25 = 10, at most 11
    torch.testing.assert_close(found[:, :, inside], expected[:, :, inside], rtol=0, atol=1e-5)
    volume = torch.rand(2, 5, 6, 7)
    assert torch.equal(corner_scale(volume, [1, 1, 1]), volume)


def test_random_scaling() -> None:
    """The same factors for image and regions, others each time and along each axis, within their range; repeatable."""
    volume = MetaTensor(torch.rand(3, 12, 12, 12), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    item = {"image": volume, "label": (volume > 0.5).to(torch.uint8)}
    transform = RandCornerScaled(["image", "label"], scale_range=(0.8, 1.5)).set_random_state(1)
    drawn = []
    for _ in range(50):
        found = transform(item)
        drawn.append(transform.factors)
        for key in item:
            assert torch.equal(found[key].as_tensor(), corner_scale(item[key], transform.factors))
        assert found["label"].dtype == torch.float32
        assert torch.equal(found["image"].affine, volume.affine)
    factors = np.array(drawn)
    assert factors.min() >= 0.8
    assert factors.max() < 1.5
    assert (abs(factors.mean(0) - 1.15) < 0.1).all()
    assert (factors.std(0) > 0.15).all()
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.4
    transform.set_random_state(1)
    transform(item)
    assert transform.factors == drawn[0]
    assert RandCornerScaled("image").scale_range == (0.7, 1.3)


def test_noise_for_sequences() -> None:
    """About a tenth of them, each by itself, becomes standard normal noise; the scan in the cache stays; repeatable."""
    scan = MetaTensor(torch.full((4, 8, 8, 8), 7.0), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    transform = RandNoiseChannelsd("image").set_random_state(0)
    found = [transform({"image": scan})["image"] for _ in range(300)]
    assert (scan == 7).all()
    assert all(torch.equal(volume.affine, scan.affine) for volume in found)
    channels = torch.stack([volume.as_tensor() for volume in found])
    noisy = (channels != 7).flatten(2).all(2)
    assert torch.equal(noisy, (channels != 7).flatten(2).any(2))
    assert (noisy.float().mean(0) - 0.1).abs().max() < 0.06
    assert 0 < int((noisy.sum(1) == 1).sum()) < int((noisy.sum(1) == 0).sum())
    noise = channels[noisy]
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(noise[0], noise[1])
    transform.set_random_state(0)
    assert torch.equal(torch.stack([transform({"image": scan})["image"].as_tensor() for _ in range(20)]), channels[:20])
    assert (RandNoiseChannelsd("image", prob=1)({"image": scan})["image"] != 7).all()
    assert (RandNoiseChannelsd("image", prob=0)({"image": scan})["image"] == 7).all()


@pytest.mark.parametrize("wrap", [MetaTensor, torch.clone])
def test_swap_of_the_first_two_axes(wrap: Any) -> None:
    """MONAI's own transforms: image and label alike, about half of the time, types and other entries untouched."""
    keys = ["image", "label"]
    transform = OneOf([Identityd(keys), Transposed(keys, indices=[0, 2, 1, 3])]).set_random_state(0)
    item = {
        "image": wrap(torch.rand(4, 5, 5, 3)),
        "label": wrap(torch.ones(3, 5, 5, 3, dtype=torch.uint8)),
        "centres": 1,
    }
    item["label"][:, 0] = 0
    swapped = 0
    for _ in range(100):
        found = transform(item)
        is_swapped = not torch.equal(found["image"], item["image"])
        swapped += is_swapped
        for key in keys:
            expected = item[key].transpose(1, 2) if is_swapped else item[key]
            assert torch.equal(found[key], expected)
            assert found[key].dtype == item[key].dtype
        assert found["centres"] == 1
    assert 30 < swapped < 70
