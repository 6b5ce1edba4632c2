"""The score that chooses weights: Dice of the regions."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, compute_dice

from .labels import CHANNELS

__all__ = ["RegionDice"]


class RegionDice(CumulativeIterationMetric):
    """Dice of WT, TC and ET, each averaged over cases; a region that is empty in both has 1.

    Args:
        region: the one to report. By default the score by which the reference chooses its weights, the minimum plus the
            mean over the three, between 0 and 2.
        threshold: above which a prediction counts: 0 for logits, 0.5 for probabilities.

    Raises:
        ValueError: if there is no such region.
    """

    def __init__(self, region: str | None = None, *, threshold: float = 0.0) -> None:
        super().__init__()
        if region is not None and region not in CHANNELS:
            raise ValueError(f"region must be one of {', '.join(CHANNELS)}, got {region!r}")
        self.region = region
        self.threshold = threshold

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Scores predictions against masks or soft targets, both `(B, 3, H, W, D)`; returns `(B, 3)`."""
        if y is None:
            raise ValueError("a target is needed")
        return compute_dice(y_pred > self.threshold, y > 0.5, include_background=True, ignore_empty=False)

    def aggregate(self) -> torch.Tensor:
        """Returns the mean of the region, or the score.

        Raises:
            ValueError: if no case was scored.
        """
        scores = self.get_buffer()
        if not isinstance(scores, torch.Tensor):
            raise ValueError("no case was scored")
        means = scores.mean(0)
        return means.min() + means.mean() if self.region is None else means[CHANNELS.index(self.region)]
