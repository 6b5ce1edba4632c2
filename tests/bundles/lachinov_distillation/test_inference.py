"""Mirrored and resized inference, and the rules that make label maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from lachinov_distillation.inferers import FlipAverageInferer, ResizedInferer
from lachinov_distillation.labelling import LabelRegionsd, discretise_classes, label_regions, remove_small_components
from lachinov_distillation.shared.validation import InputError


class Ramp(nn.Module):
    """Logits that depend on where in its input a voxel lies, and counts its passes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        along = torch.arange(x.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        across = torch.arange(x.shape[3], dtype=torch.float32).view(1, 1, 1, -1, 1)
        return torch.cat([x[:, :1] + along, 2 * x[:, :1] - across], 1).to(self.dtype)


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def test_mean_of_mirror_images_by_hand() -> None:
    """A network that adds the index along the first axis sees the last voxel as first in half of the passes."""
    network, x = Ramp(), torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1)
    found = FlipAverageInferer()(x, network)
    assert network.shapes == [(1, 1, 2, 1, 1)] * 4
    expected = [(sigmoid(1) + sigmoid(2)) / 2, (sigmoid(4) + sigmoid(3)) / 2]
    assert found[0, 0].flatten().tolist() == pytest.approx(expected)
    single = FlipAverageInferer([[]])(x, network)
    assert single[0, 0].flatten().tolist() == pytest.approx([sigmoid(1), sigmoid(4)])
    # The second axis alone, without probabilities: x + index is as without flips, 2 x - index is averaged.
    found = FlipAverageInferer([[], [1]], activation="none")(torch.ones(1, 1, 1, 2, 1), network)
    assert found.flatten().tolist() == [1, 1, 1.5, 1.5]


def test_mean_of_classes() -> None:
    """Softmax is of each pass, over the channels."""
    x = torch.tensor([0.0, 0.0]).view(1, 1, 2, 1, 1)
    found = FlipAverageInferer([[], [0]], activation="softmax")(x, Ramp())
    first = (0.5 + sigmoid(1)) / 2  # logits 0, 0 and 1, 0
    assert found[0, :, 0, 0, 0].tolist() == pytest.approx([first, 1 - first])
    assert found.sum(1).flatten().tolist() == pytest.approx([1, 1])


def test_mean_of_the_classes_regions() -> None:
    """Logits of 0, log 2, log 4 and log 3 are classes of 0.1, 0.2, 0.4 and 0.3: WT 0.9, TC 0.5, ET 0.3."""
    x = torch.tensor([1.0, 2, 4, 3]).log().view(1, 4, 1, 1, 1)
    found = FlipAverageInferer(activation="regions")(x, nn.Identity())
    assert found.flatten().tolist() == pytest.approx([0.9, 0.5, 0.3])


@pytest.mark.parametrize("flips", [[[]], [[], [0], [1], [0, 1]], [[], [2], [0, 2]]])
def test_mirror_images_of_an_equivariant_network(flips: list[list[int]]) -> None:
    """A network that looks at single voxels answers the same however it is shown them; metadata is kept."""
    x = MetaTensor(torch.randn(2, 3, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    network = nn.Conv3d(3, 3, 1)
    found = FlipAverageInferer(flips)(x, network)
    torch.testing.assert_close(torch.Tensor(found), network(x.as_tensor()).sigmoid(), rtol=0, atol=1e-6)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, x.affine)


def test_mean_with_mirrored_input_is_mirrored() -> None:
    """The four passes make any network equivariant."""
    torch.manual_seed(0)
    x, network = torch.randn(1, 2, 6, 5, 4), nn.Conv3d(2, 3, 3, padding=1)
    inferer = FlipAverageInferer()
    torch.testing.assert_close(inferer(x.flip(2), network).flip(2), inferer(x, network), rtol=0, atol=1e-6)
    torch.testing.assert_close(inferer(x.flip(2, 3), network).flip(2, 3), inferer(x, network), rtol=0, atol=1e-6)
    assert not torch.allclose(inferer(x.flip(4), network).flip(4), inferer(x, network), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_answers(dtype: torch.dtype) -> None:
    """The mean is of single precision: 0.75 and 0.25 + 2^-12 have no exact mean in half precision."""
    x = torch.linspace(-3, 3, 16).view(1, 1, 4, 4, 1)
    found = FlipAverageInferer()(x, Ramp(dtype))
    assert found.dtype == torch.float32
    passes = [Ramp(dtype)(x.flip(axes)).float().sigmoid().flip(axes) for axes in ([], [2], [3], [2, 3])]
    torch.testing.assert_close(found, torch.stack(passes).mean(0), rtol=0, atol=1e-7)


def test_half_precision_answers_at_a_fixed_size() -> None:
    """The mean of 1 and 1 + 2^-7 is no number of type bfloat16."""
    x = torch.tensor([1.0, 1 + 2**-7]).view(1, 1, 2, 1, 1)
    answer = ResizedInferer([2, 1, 1])(x[:, :, :1], lambda _: x.bfloat16())
    assert answer.dtype == torch.float32
    assert answer.flatten().tolist() == [1 + 2**-8]


def test_inferer_of_each_pass() -> None:
    """In windows of 2 of the 4 voxels, each of them counted from its own start."""
    network, x = Ramp(), torch.zeros(1, 1, 4, 1, 1)
    window = SlidingWindowInferer([2, 1, 1], sw_batch_size=1, overlap=0)
    found = FlipAverageInferer([[]], activation="none", inferer=window)(x, network)
    assert network.shapes == [(1, 1, 2, 1, 1)] * 2
    assert found[0, 0].flatten().tolist() == [0, 1, 0, 1]


def test_under_autocast() -> None:
    torch.manual_seed(0)
    x, network = torch.randn(1, 2, 4, 4, 4), nn.Conv3d(2, 3, 1)
    expected = network(x).sigmoid()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FlipAverageInferer()(x, network)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


def test_arguments_of_the_mean() -> None:
    with pytest.raises(InputError, match="flips: must hold one pass or more"):
        FlipAverageInferer([])
    with pytest.raises(InputError, match=r"activation: must be one of sigmoid, .*none, got tanh"):
        FlipAverageInferer(activation="tanh")


def test_fixed_size() -> None:
    """Two voxels as four and back: trilinear without aligned corners, x 0.25 and 0.75 between centres."""
    network = Ramp()
    x = MetaTensor(torch.tensor([0.0, 4.0]).view(1, 1, 2, 1, 1), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    found = ResizedInferer([4, 1, 1])(x, network)
    assert network.shapes == [(1, 1, 4, 1, 1)]
    # 0, 1, 3, 4 with the index added: 0, 2, 5, 7; two voxels again: the means of pairs.
    assert found[0, 0].flatten().tolist() == [1, 6]
    assert found.shape == (1, 2, 2, 1, 1)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, x.affine)


def test_fixed_size_of_mirror_images() -> None:
    """Probabilities are interpolated, not logits, if the inner inferer makes them."""
    x = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1, 1)
    inferer = ResizedInferer([4, 1, 1], inferer=FlipAverageInferer([[]]))
    found = inferer(x, Ramp())[0, 0].flatten().tolist()
    assert found == pytest.approx([(sigmoid(0) + sigmoid(2)) / 2, (sigmoid(5) + sigmoid(7)) / 2])


def probabilities(*regions: tuple[int, int], length: int = 200) -> torch.Tensor:
    """WT, TC, ET of 0.9 over ranges along one axis, and of exactly 0.5 elsewhere."""
    volume = torch.full((3, length, 1, 1), 0.5)
    for channel, (first, end) in zip(volume, regions, strict=True):
        channel[first:end] = 0.9
    return volume


def test_label_of_regions() -> None:
    """WT 10 to 150, TC 40 to 160, ET 100 to 170: regions need not be nested, 0.5 is not above the threshold."""
    label = label_regions(probabilities((10, 150), (40, 160), (100, 170)))
    assert label.dtype == torch.uint8
    assert label.shape == (200, 1, 1)
    assert label.flatten().tolist() == [0] * 10 + [2] * 30 + [1] * 60 + [4] * 70 + [0] * 30
    assert not label_regions(probabilities((0, 200), (0, 200), (0, 200)), threshold=0.9).any()
    assert (label_regions(torch.full((3, 40, 1, 1), 0.5), threshold=0.4) == 4).all()


@pytest.mark.parametrize(
    ("count", "minimum", "volume", "kept"),
    [
        (32, 32.0, 1.0, False),
        (33, 32.0, 1.0, True),
        (16, 32.0, 2.0, False),
        (17, 32.0, 2.0, True),
        (40, 32.0, 0.5, False),
        (32, 32.0, 1 + 1e-7, False),  # a spacing of single precision
        (1, 0.0, 1.0, True),
    ],
)
def test_least_enhancing_volume(count: int, minimum: float, volume: float, kept: bool) -> None:
    """Too few voxels keep what the larger regions made of them."""
    soft = probabilities((0, 100), (0, 60), (0, count))
    label = label_regions(soft, minimum_enhancing=minimum, voxel_volume=volume).flatten()
    assert int((label == 4).sum()) == (count if kept else 0)
    assert int((label == 1).sum()) == 60 - (count if kept else 0)
    assert int((label == 2).sum()) == 40


@pytest.mark.parametrize(("count", "kept"), [(32, False), (33, True)])
def test_rules_of_the_reference_are_the_defaults(count: int, kept: bool) -> None:
    """More than 32 enhancing voxels, and a tenth of the foreground in a component: 11 of 110 stay, 10 do not."""
    soft = MetaTensor(probabilities((0, 99), (0, 60), (0, count)), affine=torch.eye(4))
    assert bool((label_regions(soft) == 4).any()) == kept
    for size, stays in ((11, True), (10, False)):
        soft[0, 150:200] = torch.where(torch.arange(50) < size, 0.9, 0.5).view(-1, 1, 1)
        label = LabelRegionsd("pred")({"pred": soft})["pred"]
        assert bool((label == 4).any()) == kept
        assert bool(label[0, 150:].any()) == stays


def test_components() -> None:
    """90, 10 and 9 voxels apart: 10 % of all 109 is more than 10; of 100 it is not."""
    large, middle, small = (
        (slice(0, 9), slice(0, 5), slice(0, 2)),
        (slice(12, 14), slice(0, 5)),
        (slice(18, 21), slice(0, 3)),
    )
    label = torch.zeros(24, 8, 4, dtype=torch.uint8)
    label[large] = 2
    label[(*middle, 2)] = 1
    without_small = label.clone()
    label[(*small, 3)] = 4
    assert torch.equal(remove_small_components(without_small), without_small)
    found = remove_small_components(label)
    assert found.dtype == torch.uint8
    assert int((found > 0).sum()) == 90
    assert torch.equal(remove_small_components(label, fraction=0.09), without_small)
    assert torch.equal(remove_small_components(label, fraction=0), label)
    assert int((label == 4).sum()) == 9


def test_components_touch_at_corners_whatever_their_labels() -> None:
    label = torch.zeros(10, 10, 10, dtype=torch.uint8)
    label[:5, :5, :5] = 2
    label[5, 5, 5] = 4
    assert torch.equal(remove_small_components(label), label)
    label[5, 5, 5], label[6, 6, 6] = 0, 4
    assert set(remove_small_components(label).flatten().tolist()) == {0, 2}
    assert not remove_small_components(torch.zeros(3, 3, 3, dtype=torch.uint8)).any()


def test_most_probable_class() -> None:
    """Values of files, the first among equals."""
    columns = torch.tensor(
        [
            [0.4, 0.3, 0.2, 0.1],
            [0.1, 0.6, 0.2, 0.1],
            [0.1, 0.2, 0.6, 0.1],
            [0.1, 0.1, 0.2, 0.6],
            [0.25] * 4,
            [0, 0.5, 0, 0.5],
        ]
    )
    label = discretise_classes(columns.T.reshape(4, 6, 1, 1))
    assert label.dtype == torch.uint8
    assert label.shape == (6, 1, 1)
    assert label.flatten().tolist() == [0, 1, 2, 4, 0, 1]


def test_label_transform_keeps_the_grid() -> None:
    """17 voxels of 2 mm³ are enough, the component of 15 is too small, metadata stays."""
    soft = torch.zeros(3, 30, 30, 30)
    soft[0, :10, :10, :10] = soft[1, 2:6, 2:6, 2:6] = soft[2, 2:3, 2:6, 2:6] = 0.9
    soft[2, 3, 2, 2] = 0.9
    soft[0, 20:25, 20:23, 20] = 0.9
    volume = MetaTensor(soft, affine=torch.diag(torch.tensor([-1.0, -1, 2, 1])), meta={"filename_or_obj": "X.nii.gz"})
    item = LabelRegionsd("pred")({"pred": volume, "other": 1})
    found = item["pred"]
    assert (found.shape, found.dtype) == ((1, 30, 30, 30), torch.uint8)
    assert torch.equal(found.affine, volume.affine)
    assert found.meta["filename_or_obj"] == "X.nii.gz"
    assert torch.bincount(found.as_tensor().flatten()).tolist() == [27000 - 1000, 47, 1000 - 64, 0, 17]
    options = LabelRegionsd("pred", threshold=0.8, minimum_enhancing=40, fraction=0.01)({"pred": volume})["pred"]
    assert torch.bincount(options.as_tensor().flatten()).tolist() == [27000 - 1015, 64, 1015 - 64]
    assert not LabelRegionsd("pred", threshold=0.95)({"pred": volume})["pred"].any()
    assert item["other"] == 1
