"""Latent-space augmentation: masks on codes that make hard examples (Chen et al., MICCAI 2021, section 2.2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

__all__ = ["LatentMasking", "channel_mask", "code_gradient", "spatial_mask"]

RANKINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "signed_desc": lambda scores: scores,
    "signed_asc": torch.neg,
    "abs": torch.abs,
}
AMP_SCALE = 2.0**16  # keeps the gradient of a mean over all pixels within half precision


def code_gradient(loss: Callable[[torch.Tensor], torch.Tensor], code: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of `loss(code)` with respect to `code`; parameters get none.

    Under automatic mixed precision it is multiplied by a constant, which no ranking notices.
    """
    leaf = code.detach().requires_grad_()
    value = loss(leaf)
    scale = AMP_SCALE if torch.is_autocast_enabled(code.device.type) else 1.0
    (gradient,) = torch.autograd.grad(value * scale, leaf)
    return gradient


def channel_mask(
    gradient: torch.Tensor, fraction: float, *, soft: bool = True, ranking: str = "signed_desc"
) -> torch.Tensor:
    """Mask over the channels with the highest mean gradient.

    Args:
        gradient: of the loss with respect to the code, `(B, K, h, w)`.
        fraction: of the channels to mask, below 1; `int(K * fraction)` are masked, fewer where scores are equal.
        soft: masked channels keep a random factor from [0, 0.5), drawn for each, instead of 0.
        ranking: what counts as high: the mean as it is (`signed_desc`, the reference's), its negative (`signed_asc`) or
            its absolute value (`abs`).

    Returns:
        Factors `(B, K, 1, 1)`.
    """
    return _mask(gradient.mean((2, 3)), fraction, soft=soft, ranking=ranking)[:, :, None, None]


def spatial_mask(
    gradient: torch.Tensor, fraction: float, *, soft: bool = True, ranking: str = "signed_desc"
) -> torch.Tensor:
    """Mask over the positions with the highest mean gradient; arguments as in `channel_mask`.

    Returns:
        Factors `(B, 1, h, w)`.
    """
    scores = gradient.mean(1)
    return _mask(scores.flatten(1), fraction, soft=soft, ranking=ranking).view_as(scores)[:, None]


def _mask(scores: torch.Tensor, fraction: float, *, soft: bool, ranking: str) -> torch.Tensor:
    scores = RANKINGS[ranking](scores)
    masked = int(scores.shape[1] * fraction)
    threshold = scores.topk(masked + 1).values[:, -1:]
    factor = 0.5 * torch.rand_like(scores) if soft else torch.zeros_like(scores)
    return torch.where(scores > threshold, factor, 1.0)


class LatentMasking:
    """Masks a code in a way drawn again for every batch.

    Kinds are `dropout` (whole channels of every sample dropped at random, the rest scaled up), `channel` and `spatial`
    (the channels or positions with the highest gradient of the loss, see `channel_mask`). The kind is drawn from
    Python's generator, the fraction from NumPy's, factors from torch's, in the reference's order.

    Args:
        kinds: what to choose from, equally likely.
        max_threshold: fraction that is masked at most, between 0 and 1.
        random_threshold: draw the fraction from [0, `max_threshold`) instead of using `max_threshold`.
        soft: see `channel_mask`.
        ranking: see `channel_mask`.

    Raises:
        ValueError: when a kind or the ranking is unknown, or the threshold is outside its range.
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("dropout", "spatial", "channel"),
        *,
        max_threshold: float = 0.5,
        random_threshold: bool = True,
        soft: bool = True,
        ranking: str = "signed_desc",
    ) -> None:
        if not kinds or not set(kinds) <= {"dropout", "spatial", "channel"}:
            raise ValueError(f"kinds must be among dropout, spatial and channel, got {list(kinds)}")
        if not 0 < max_threshold < 1:
            raise ValueError(f"max_threshold must lie between 0 and 1, got {max_threshold}")
        if ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, got {ranking}")
        self.kinds = tuple(kinds)
        self.max_threshold = max_threshold
        self.random_threshold = random_threshold
        self.soft = soft
        self.ranking = ranking

    def draw_kind(self) -> str:
        """Returns one of the kinds."""
        shuffled = list(self.kinds)
        random.shuffle(shuffled)
        return shuffled[0]

    def draw_fraction(self) -> float:
        """Returns the fraction to mask by gradients."""
        return self.max_threshold * (float(np.random.rand()) if self.random_threshold else 1.0)  # noqa: NPY002

    def __call__(self, code: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns the masked code.

        Args:
            code: `(B, K, h, w)`, detached.
            loss: maps a code to the scalar whose gradient targeted masks rank by.
        """
        kind = self.draw_kind()
        if kind == "dropout":
            return functional.dropout2d(code, self.max_threshold)
        gradient = code_gradient(loss, code)
        mask = channel_mask if kind == "channel" else spatial_mask
        return code * mask(gradient, self.draw_fraction(), soft=self.soft, ranking=self.ranking)
