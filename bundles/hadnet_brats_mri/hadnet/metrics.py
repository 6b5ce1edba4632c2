"""The score that chooses weights: Dice of the tumour's regions as the reference smooths and averages it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric

from .shared.regions import REGIONS, region_mask

__all__ = ["SmoothedDice", "smoothed_dice"]


def smoothed_dice(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Dice of two masks of one shape, `(2 |A & B| + 1) / (|A| + |B| + 1)`: 1 where both are empty, never undefined."""
    return (2 * (found & true).sum() + 1) / (found.sum() + true.sum() + 1)


class SmoothedDice(CumulativeIterationMetric):
    """Mean over cases of the mean `smoothed_dice` of some regions.

    Args:
        regions: names in `REGIONS`.
    """

    def __init__(self, regions: Sequence[str] = tuple(REGIONS)) -> None:
        super().__init__()
        self.regions = list(regions)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Scores logits `(B, C, H, W, D)` against class indices `(B, 1, H, W, D)`; returns `(B, regions)`."""
        if y is None:
            raise ValueError("a label is needed")
        scores = [
            smoothed_dice(*(region_mask(volume, name, values=range(4)) for volume in pair))
            for pair in zip(y_pred.max(1).indices, y[:, 0], strict=True)
            for name in self.regions
        ]
        return torch.stack(scores).view(-1, len(self.regions))

    def aggregate(self) -> torch.Tensor:
        """Returns the mean over cases and regions."""
        scores = self.get_buffer()
        if not isinstance(scores, torch.Tensor):
            raise ValueError("no case was scored")
        return scores.mean()
