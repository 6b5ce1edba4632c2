"""The segmentation loss of every stage, and the loss of what the discriminator says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["ClassWeightedCrossEntropy", "least_squares"]


class ClassWeightedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy whose voxels count by their class: sum of w[y] * -log softmax(z)[y] over the sum of w[y].

    Args:
        class_weights: weight of every class, background first.
    """

    weight: torch.Tensor

    def __init__(self, class_weights: Sequence[float]) -> None:
        super().__init__(weight=torch.tensor(class_weights, dtype=torch.float32))

    def set_class_weights(self, class_weights: Sequence[float]) -> None:
        """Replaces the weights, for example at the start of an epoch."""
        self.weight.copy_(torch.tensor(class_weights))

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logits `(B, C, H, W, D)` and class indices `(B, 1, H, W, D)`."""
        return super().forward(logits, label[:, 0].long())


def least_squares(verdict: torch.Tensor, target: float) -> torch.Tensor:
    """Mean squared distance of a discriminator's patches from `target`.

    `monai.losses.PatchAdversarialLoss` gives the same, but brings its target from the host at every call.
    """
    return (verdict.float() - target).square().mean()
