"""A scan's way to the network and back, training samples and label rules against those of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import (
    Compose,
    DivisiblePadd,
    Identityd,
    Invertd,
    MeanEnsembled,
    OneOf,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SpatialPadd,
    Transposed,
)
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from lachinov_distillation.inferers import FlipAverageInferer
from lachinov_distillation.labelling import LabelRegionsd, discretise_classes, remove_small_components
from lachinov_distillation.sampling import RandCornerScaled, RandTumourPatchd, TumourCentresd, corner_scale
from lachinov_distillation.shared.regions import region_mask
from lachinov_distillation.transforms import CropBraind, NormalizePositived
from tests.bundles.lachinov_distillation.reference import student
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/lachinov_distillation/golden.npz")
PATCH = (32, 32, 24)
CASES = (0, 1)
BOTH = ["image", "label"]

Array = NDArray[Any]
each_case = pytest.mark.parametrize("case", CASES)


def image(case: int) -> MetaTensor:
    return MetaTensor(torch.from_numpy(GOLDEN[f"data/case{case}/image_i16"]), affine=GOLDEN["data/affine"])


def regions(case: int) -> MetaTensor:
    label = torch.from_numpy(GOLDEN[f"data/case{case}/label_u8"])
    stacked = torch.stack([region_mask(label, region) for region in ("WT", "TC", "ET")])
    return MetaTensor(stacked.to(torch.uint8), affine=GOLDEN["data/affine"])


@each_case
def test_padding_and_normalisation(case: int) -> None:
    """As validation pads, at the end; every fourth voxel along each axis, padding and background among them."""
    transform = Compose([DivisiblePadd(BOTH, k=16, method="end"), NormalizePositived("image")])
    item = transform({"image": image(case), "label": regions(case)})
    assert item["image"].shape == (4, 48, 64, 48)
    assert item["image"].dtype == torch.float32
    np.testing.assert_allclose(item["image"][:, ::4, ::4, ::4], GOLDEN[f"data/full{case}/image"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(item["label"], GOLDEN[f"data/full{case}/regions"])
    np.testing.assert_array_equal(item["image"].affine, GOLDEN["data/affine"])


def test_padded_sizes() -> None:
    for size, expected in GOLDEN["helper/closest_to_16"].tolist():
        item = DivisiblePadd("image", k=16)({"image": torch.ones(1, size, 16, 16)})
        assert item["image"].shape == (1, expected, 16, 16)
        before = (expected - size) // 2
        assert item["image"][0, :, 0, 0].nonzero().flatten().tolist() == list(range(before, before + size))


class Recorded:
    """Random numbers from a list, those of the unit interval in place of any other."""

    def __init__(self, draws: Iterable[float]) -> None:
        self.draws = iter(draws)

    def rand(self) -> float:
        return next(self.draws)

    def uniform(self, low: Any, high: Any) -> Any:
        units = np.reshape([next(self.draws) for _ in range(np.size(low))], np.shape(low))
        return low + units * (high - low)

    def multinomial(self, trials: int, weights: Sequence[float]) -> Array:
        assert (trials, list(weights)) == (1, [0.5, 0.5])
        first = next(self.draws) < weights[0]
        return np.array([first, not first], int)


def replay(draws: Array) -> list[Any]:
    """The augmentation, with the numbers that the reference drew in place of random ones.

    After the patch's centre the reference draws two numbers that it does not use. It flips where a number exceeds the
    probability, MONAI where it falls short.
    """
    centre, _, factors, flips, swap, scales, shifts = np.split(draws, np.cumsum([3, 2, 3, 3, 1, 4]))
    patch, scale = RandTumourPatchd(BOTH, patch_size=PATCH), RandCornerScaled(BOTH)
    transforms: list[Any] = [patch, scale]
    patch.R, scale.R = Recorded(centre), Recorded(factors)
    for axis, number in enumerate(flips):
        transforms.append(RandFlipd(BOTH, prob=0.5, spatial_axis=axis))
        transforms[-1].R = Recorded([1 - number])
    transforms.append(OneOf([Identityd(BOTH), Transposed(BOTH, indices=[0, 2, 1, 3])]))
    transforms[-1].R = Recorded(swap)
    scaling = RandScaleIntensityd("image", factors=0.1, prob=1, channel_wise=True)
    scaling.R, scaling.scaler.R = Recorded([0]), Recorded([0, *(scales - 0.9) / 0.2])
    shifting = RandShiftIntensityd("image", offsets=0.2, prob=1, channel_wise=True)
    shifting.R, shifting.shifter.R = Recorded([0]), Recorded([0, *(shifts + 0.2) / 0.4])
    return [*transforms, scaling, shifting]


@pytest.mark.parametrize("sample", range(4))
def test_training_sample(sample: int) -> None:
    """Image (every third voxel along each axis) and fractional regions, from the very draws of the reference."""
    case = int(GOLDEN["data/simple/used_image_index"][sample])
    item: Any = {"image": image(case), "label": regions(case)}
    prepare = [NormalizePositived("image"), TumourCentresd(patch_size=PATCH)]
    for transform in [*prepare, *replay(GOLDEN[f"data/simple/{sample}/draws"])]:  # Compose would seed them
        item = transform(item)
    np.testing.assert_array_equal(item["centres"], GOLDEN["data/simple/centre_boxes"][case])
    assert item["image"].dtype == item["label"].dtype == torch.float32
    expected = GOLDEN[f"data/simple/{sample}/regions"]
    np.testing.assert_allclose(item["label"], expected, rtol=0, atol=1e-6)
    assert ((expected > 0) & (expected < 1)).sum() > 100
    seen = item["image"][:, ::3, ::3, ::3]
    np.testing.assert_allclose(seen, GOLDEN[f"data/simple/{sample}/image"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("index", range(3))
def test_scaling(index: int) -> None:
    volume, factors = torch.from_numpy(GOLDEN["data/scale/in"]), GOLDEN[f"data/scale/{index}_factors"].tolist()
    np.testing.assert_allclose(corner_scale(volume, factors), GOLDEN[f"data/scale/{index}_out"], rtol=0, atol=1e-6)


class Threshold(nn.Module):
    """Means of FLAIR and T1ce over 3 x 3 x 3 voxels against fixed thresholds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flair, t1ce = (functional.avg_pool3d(x[:, channel], 3, stride=1, padding=1) for channel in ([3], [1]))
        return torch.cat([flair - 1.2, t1ce - 1.2, t1ce - 4.9], dim=1)


def segmented(network: nn.Module, **rules: Any) -> list[MetaTensor]:
    """Label maps of both cases, made as the shipped inference makes them, but with the reference's box."""
    preprocessing = Compose(
        [CropBraind("image", legacy_bbox=True), DivisiblePadd("image", k=16), NormalizePositived("image")]
    )
    postprocessing = Compose(
        [
            Invertd("pred", orig_keys="image", transform=preprocessing, nearest_interp=False),
            LabelRegionsd("pred", **rules),
        ]
    )
    maps: list[MetaTensor] = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": image(case)} for case in CASES], preprocessing)),
        network=network,
        inferer=FlipAverageInferer(),
        postprocessing=postprocessing,
    )
    evaluator.add_event_handler("ITERATION_COMPLETED", lambda engine: maps.append(engine.state.output[0]["pred"]))
    evaluator.run()
    return maps


def assert_map(found: MetaTensor, expected: Array, *, differing: int) -> None:
    assert found.dtype == torch.uint8
    assert found.shape == (1, *expected.shape)
    assert int((found[0].numpy() != expected).sum()) <= differing
    np.testing.assert_array_equal(found.affine, GOLDEN["data/affine"])


def test_inference_with_thresholds() -> None:
    """In case 1 there are too few enhancing voxels, in both a component too small."""
    found = segmented(Threshold())
    for case in CASES:
        assert_map(found[case], GOLDEN[f"data/test_analytic/case{case}"], differing=0)
    assert found[1].unique().tolist() == [0, 1, 2]
    for few, every in zip(found, segmented(Threshold(), minimum_enhancing=0, fraction=0), strict=True):
        assert every.unique().tolist() == [0, 1, 2, 4]
        assert 0 < int((every > 0).sum()) - int((few > 0).sum()) < 100


def test_inference_with_the_student() -> None:
    """One in a thousand voxels may differ, where a mean probability is 0.5 but for rounding."""
    network = student()
    with torch.no_grad():
        network.head.get_parameter("bias").add_(torch.from_numpy(GOLDEN["data/test_net/conv_output_bias_shift"]))
    for case, found in enumerate(segmented(network)):
        expected = GOLDEN[f"data/test_net/case{case}"]
        assert_map(found, expected, differing=expected.size // 1000)


def test_small_components() -> None:
    label = torch.from_numpy(GOLDEN["data/reject/in"])
    expected = GOLDEN["data/reject/out"]
    assert (label.numpy() != expected).any()
    np.testing.assert_array_equal(remove_small_components(label), expected)


def test_mean_of_teachers() -> None:
    keys = [f"pred_{index}" for index in range(6)]
    item = dict(zip(keys, map(torch.from_numpy, GOLDEN["data/average/in"]), strict=True))
    mean = MeanEnsembled(keys, output_key="pred")(item)["pred"]
    np.testing.assert_array_equal(discretise_classes(mean), GOLDEN["data/average/out"])


def test_box_without_its_last_slices() -> None:
    """What the reference takes for the box of voxels at (2, 3, 1) and (5, 4, 6)."""
    first, last = GOLDEN["helper/bbox3"].tolist()
    volume = torch.zeros(1, 9, 9, 9)
    volume[(0, *first)] = volume[(0, *last)] = 1
    legacy = CropBraind("image", legacy_bbox=True)({"image": volume})["image"]
    assert legacy.shape == (1, *(stop - start for start, stop in zip(first, last, strict=True)))
    assert legacy.nonzero().tolist() == [[0, 0, 0, 0]]
    whole = CropBraind("image")({"image": volume})["image"]
    assert whole.nonzero().tolist() == [[0, 0, 0, 0], [0, 3, 1, 5]]


@each_case
def test_whole_brain_at_the_size_of_the_offline_crop(case: int) -> None:
    """The reference's crop also holds the whole brain; it is up to 4 voxels from ours, for the box it cuts short."""
    (start, end), size = GOLDEN["data/crop/boxes_halfopen"][case], GOLDEN["data/crop/crop_size"].tolist()
    volume = torch.zeros(1, 240, 240, 155, dtype=torch.uint8)
    volume[0, start[0] : end[0], start[1] : end[1], start[2] : end[2]] = 1
    crop = Compose([CropBraind("image"), SpatialPadd("image", size)])({"image": volume})["image"][0]
    indices = crop.nonzero()
    first, last = GOLDEN["data/crop/boxes_after"][case]
    assert crop.shape == (160, 192, 160)
    np.testing.assert_array_equal(indices.amax(0) - indices.amin(0), last - first)
    assert abs(indices.amin(0).numpy() - first).max() <= 4
