"""Losses, conversions and score of lachinov_distillation_brats_mri by hand; the golden numbers are elsewhere."""

from __future__ import annotations

from math import log

import pytest
import torch

from lachinov_distillation.conversions import class_probabilities, region_probabilities
from lachinov_distillation.losses import CascadeLoss, JointDice, RegionLoss, WeightedBCE
from lachinov_distillation.metrics import RegionDice


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def volume(*channels: list[float]) -> torch.Tensor:
    """One sample with a row of voxels in each channel."""
    return torch.tensor(channels)[None, :, :, None, None]


def test_joint_dice_by_hand() -> None:
    """Over the whole batch, and p squared alone: 2 * 0.9 / (0.25 + 1 + 1.3) and 2 * 0.5 / (0.5 + 0.5)."""
    probabilities = torch.cat([volume([0.5, 0.0], [0.5, 0.5]), volume([1.0, 0.0], [0.0, 0.0])])
    target = torch.cat([volume([0.6, 0.1], [0.25, 0.25]), volume([0.6, 0.0], [0.0, 0.0])])
    expected = 1 - (1.8 / 2.55 + 0.5 / 1.0) / 2
    assert JointDice()(probabilities, target).item() == pytest.approx(expected, abs=1e-5)


def test_region_absent_from_the_batch_costs_one() -> None:
    probabilities = volume([0.3, 0.4]).requires_grad_()
    loss = JointDice()(probabilities, volume([0.0, 0.0]))
    (gradient,) = torch.autograd.grad(loss, probabilities)
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert 0 < gradient.abs().max() < 1e-3
    assert JointDice()(volume([0.0, 0.0]), volume([0.0, 0.0])).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_weighted_bce_by_hand(weight: float) -> None:
    found = WeightedBCE(weight)(volume([0.25, 0.5, 0.5]), volume([1.0, 0.0, 0.5])).item()
    assert found == pytest.approx((log(4) + (1 + weight) * 0.5 * log(2) + weight * log(2)) / 3, abs=1e-5)


def test_weighted_bce_is_bounded() -> None:
    """A sure mistake costs 13.8, as the reference lets it; a background voxel a hundredth of it."""
    assert WeightedBCE()(volume([0.0]), volume([1.0])).item() == pytest.approx(-log(1e-6), rel=1e-5)
    assert WeightedBCE()(volume([1.0]), volume([0.0])).item() == pytest.approx(-0.01 * log(1e-6), rel=1e-2)


def test_region_loss_is_the_mean_of_both() -> None:
    logits, target = 3 * torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3, 4, 4, 4)
    both = JointDice()(logits.sigmoid(), target) + WeightedBCE(0.3)(logits.sigmoid(), target)
    assert RegionLoss(0.3)(logits, target).item() == pytest.approx(both.item() / 2, rel=1e-6)
    assert RegionLoss().bce.background_weight == 0.01


@pytest.mark.parametrize("loss", [RegionLoss(), CascadeLoss()])
def test_losses_in_single_precision(loss: torch.nn.Module) -> None:
    """Whatever the logits and targets are: masks of bytes, and half precision under autocast."""
    channels = 3 if isinstance(loss, RegionLoss) else 4
    logits = (8 * torch.randn(1, channels, 16, 16, 16)).bfloat16().requires_grad_()
    target = (torch.rand(1, 3, 16, 16, 16) > 0.5).to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(logits.detach().float(), target.float()))
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()


def sure(classes: list[int]) -> torch.Tensor:
    """Logits of a row of classes, each in four voxels."""
    row = 100 * torch.nn.functional.one_hot(torch.tensor(classes), 4).T.float()
    return row[None, :, :, None, None].expand(-1, -1, -1, 2, 2)


def test_cascade_loss_by_hand() -> None:
    """ET beside background, each in four voxels; at half the size one voxel is half ET.

    Finest, NCR where ET is: 1 / (4 + 1) for NCR and ET, 1 for oedema, which is nowhere. Half, ET: 2 / 2.5 and twice 1.
    """
    target = volume([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]).expand(-1, -1, -1, 2, 2)
    finest, half = sure([1, 0]), sure([3])[..., :1, :1]
    losses = 1 - (1 / 5 + 1 + 1 / 5) / 3, 1 - (1 + 1 + 2 / 2.5) / 3
    loss = CascadeLoss((0.4, 0.3))
    assert loss([finest, half], target).item() == pytest.approx(0.4 * losses[0] + 0.3 * losses[1], rel=1e-5)
    assert loss(finest, target).item() == pytest.approx(0.4 * losses[0], rel=1e-5)


def test_cascade_loss_averages_over_samples() -> None:
    """The mean of what each sample would have alone: unlike the student's loss."""
    logits, target = torch.randn(2, 4, 4, 4, 4), torch.rand(2, 3, 4, 4, 4)
    target[1] *= 0.05
    loss = CascadeLoss()
    alone = [loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(2)]
    assert loss(logits, target).item() == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert loss.weights == [0.4, 0.3, 0.2]


def test_cascade_loss_wants_every_network() -> None:
    with pytest.raises(ValueError, match="zip"):
        CascadeLoss()([torch.zeros(1, 4, 2, 2, 2)], torch.zeros(1, 3, 2, 2, 2))


def test_classes_of_regions_by_hand() -> None:
    regions = torch.tensor([[[0.9, 0.2, 0.0, 0.3], [0.5, 0.4, 0.0, 0.1], [0.2, 0.7, 1.0, 0.2]]])  # the first is nested
    expected = [[0.1, 0.3, 0.0, 0.7], [0.3, 0.0, 0.0, 0.0], [0.4, 0.0, 0.0, 0.1], [0.2, 0.7, 1.0, 0.2]]
    torch.testing.assert_close(class_probabilities(regions), torch.tensor([expected]))


def test_regions_of_classes_by_hand() -> None:
    classes = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(region_probabilities(classes), torch.tensor([[0.9, 0.6, 0.4]]))


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 5, 4, 3)])
def test_conversions_undo_each_other(shape: tuple[int, ...]) -> None:
    nested = torch.rand(shape).sort(dim=1, descending=True).values
    torch.testing.assert_close(region_probabilities(class_probabilities(nested)), nested, rtol=0, atol=3e-7)
    classes = torch.randn(shape[0], 4, *shape[2:]).softmax(1)
    torch.testing.assert_close(class_probabilities(region_probabilities(classes)), classes, rtol=0, atol=3e-7)


def test_classes_of_any_regions_are_probabilities() -> None:
    """No need to normalise: they add up to 1 where regions are not nested, too."""
    classes = class_probabilities(torch.rand(2, 3, 8, 8, 8))
    assert classes.min() >= 0
    torch.testing.assert_close(classes.sum(1), torch.ones(2, 8, 8, 8), rtol=0, atol=3e-7)


def test_score_by_hand() -> None:
    """Cases: Dice 1/2, 1 (both empty), 0 and then 1, 0 (found where nothing is), 1."""
    logits = torch.cat([volume([5.0, -5.0], [-1.0, -1.0], [0.1, -1.0]), volume([1.0, 1.0], [-1.0, 0.2], [-2.0, -2.0])])
    target = torch.cat([volume([0.6, 0.0], [0.0, 0.5], [0.0, 0.9]), volume([1.0, 1.0], [0.0, 0.0], [0.0, 0.0])])
    target[0, 0, 1] = 1
    logits[0, 0, 1] = -0.1
    expected = {"WT": (2 / 3 + 1) / 2, "TC": 0.5, "ET": 0.5}
    for region, value in expected.items():
        metric = RegionDice(region)
        metric(logits, target)
        assert metric.aggregate().item() == pytest.approx(value, abs=1e-6), region
    score = RegionDice()
    score(logits, target)
    assert score.aggregate().item() == pytest.approx(0.5 + sum(expected.values()) / 3, abs=1e-6)
    score.reset()
    score(target - 0.5, target)
    assert score.aggregate().item() == 2


def test_half_is_not_found() -> None:
    """Probability 0.5, logit 0: strictly above counts."""
    for metric, value in ((RegionDice("WT"), 0.0), (RegionDice("WT", threshold=0.5), 0.5)):
        metric(torch.full((1, 3, 2, 2, 2), value), torch.ones(1, 3, 2, 2, 2))
        assert metric.aggregate().item() == 0


def test_score_refuses() -> None:
    with pytest.raises(ValueError, match="region must be one of WT, TC, ET, got 'NCR'"):
        RegionDice("NCR")
    with pytest.raises(ValueError, match="a target is needed"):
        RegionDice()(torch.zeros(1, 3, 2, 2, 2))
    with pytest.raises(ValueError, match="no case was scored"):
        RegionDice().aggregate()
