"""The losses of the ResUNet on regions and of the Cascaded UNet on classes; targets may be soft."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .conversions import class_probabilities

__all__ = ["CascadeLoss", "JointDice", "RegionLoss", "WeightedBCE"]

EPSILON = 1e-6


class JointDice(nn.Module):
    """Soft Dice loss of whole batches: 1 - mean over regions of 2 I / U.

    I = sum(p g) + 1e-6 and U = sum(p^2 + g) + 2e-6 over samples and voxels. Unlike in `monai.losses.DiceLoss` the
    target g is not squared, which matters where it is soft. A region that is empty in the whole batch costs 1 and has
    almost no gradient.
    """

    def forward(self, probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of probabilities against targets in [0, 1], both `(B, C, ...)`."""
        axes = [0, *range(2, probabilities.ndim)]
        overlap = (probabilities * target).sum(axes) + EPSILON
        total = probabilities.square().sum(axes) + target.sum(axes) + 2 * EPSILON
        return 1 - (2 * overlap / total).mean()


class WeightedBCE(nn.Module):
    """Binary cross-entropy whose background counts less: -mean[g log(p + 1e-6) + w (1 - g) log(1 + 1e-6 - p)].

    On probabilities, as trained: the 1e-6 bounds a voxel's loss by 13.8, where one on logits is unbounded. A perfect
    prediction is slightly below 0.

    Args:
        background_weight: the w.
    """

    def __init__(self, background_weight: float = 0.01) -> None:
        super().__init__()
        self.background_weight = background_weight

    def forward(self, probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of probabilities against targets in [0, 1], both `(B, C, ...)`."""
        foreground = torch.xlogy(target, probabilities + EPSILON).mean()
        background = torch.xlogy(1 - target, 1 + EPSILON - probabilities).mean()
        return -(foreground + self.background_weight * background)


class RegionLoss(nn.Module):
    """Mean of `JointDice` and `WeightedBCE`, on logits and in single precision even under autocast.

    Args:
        background_weight: see `WeightedBCE`.
    """

    def __init__(self, background_weight: float = 0.01) -> None:
        super().__init__()
        self.dice = JointDice()
        self.bce = WeightedBCE(background_weight)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logits against masks or soft targets of the regions, both `(B, 3, H, W, D)`."""
        probabilities, target = logits.float().sigmoid(), target.float()
        return (self.dice(probabilities, target) + self.bce(probabilities, target)) / 2


class CascadeLoss(nn.Module):
    """Weighted sum of the Dice losses of the networks of a cascade, in single precision even under autocast.

    Each is 1 - mean over samples and classes but the background of (2 sum(p g) + 1) / (sum p^2 + sum g + 1), with the
    target's classes g averaged down to the network's resolution.

    Args:
        weights: weight of each network, finest first; the reference's do not add up to 1.
    """

    def __init__(self, weights: Sequence[float] = (0.4, 0.3, 0.2)) -> None:
        super().__init__()
        self.weights = list(weights)

    def forward(self, logits: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Returns the loss.

        Args:
            logits: those of `CascadedUNet` in training: `(B, 4, H, W, D)` and each time half the size; or in evaluation
                the finest alone, whose weighted loss is the result then.
            target: masks or soft targets of WT, TC, ET, `(B, 3, H, W, D)`.

        Raises:
            ValueError: if there are more or fewer networks than weights.
        """
        is_finest = isinstance(logits, torch.Tensor)
        scales, weights = ([logits], self.weights[:1]) if is_finest else (logits, self.weights)
        classes, losses = class_probabilities(target.float())[:, 1:], list[torch.Tensor]()
        for weight, scale in zip(weights, scales, strict=True):
            classes = functional.avg_pool3d(classes, 2) if losses else classes
            losses.append(weight * _class_dice(scale.float().softmax(1)[:, 1:], classes))
        return torch.stack(losses).sum()


def _class_dice(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    overlap = (probabilities * target).flatten(2).sum(2)
    total = probabilities.square().flatten(2).sum(2) + target.flatten(2).sum(2)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()
