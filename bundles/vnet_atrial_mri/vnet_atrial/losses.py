"""Region and boundary losses of the method, on logits of one class.

The published Dice loss (over the whole batch, plain sums in the denominator) is
`monai.losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=0, smooth_dr=1e-6)`; what MONAI lacks follows.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BoundaryLoss", "HybridLoss"]


class BoundaryLoss(nn.Module):
    """Mean of probability times level set, in voxels (Kervadec et al., MIDL 2019, equation 5).

    `monai.losses.BoundaryLoss` computes the distance maps at every step; here they come with the batch, computed once
    per case by `LevelSetd`.
    """

    def forward(self, logits: torch.Tensor, level_set: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of `logits` and `level_set`, both `(B, 1, H, W, D)`."""
        return (logits.sigmoid() * level_set).mean()


class HybridLoss(nn.Module):
    """`a * region + (1 - a) * boundary`, where the share `a` of the region loss falls during training.

    Args:
        region: loss of logits and mask, for example Dice.
        region_weight: share `a` until `set_region_weight` changes it.
    """

    def __init__(self, region: nn.Module, region_weight: float = 1.0) -> None:
        super().__init__()
        self.region = region
        self.boundary = BoundaryLoss()
        self.region_weight = region_weight

    def set_region_weight(self, weight: float) -> None:
        """Sets the share `a`; the setter of a `ParamSchedulerHandler`."""
        self.region_weight = float(weight)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss.

        Args:
            logits: `(B, 1, H, W, D)`.
            target: `(B, 2, H, W, D)`, the mask in {0, 1} and its level set in voxels.
        """
        label, level_set = target[:, :1], target[:, 1:]
        region = self.region_weight * self.region(logits, label)
        return region + (1 - self.region_weight) * self.boundary(logits, level_set)
