"""Windows as the network saw them in training, and probabilities averaged over mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer

__all__ = ["WindowInferer"]


class WindowInferer(SlidingWindowInferer):
    """Sliding windows, each z-scored by itself, optionally mirrored along axes.

    Training patches are z-scored one by one, while a whole scan holds much that is dark: by its mean, a window at the
    heart is too bright for the network. A window that is the whole volume, z-scored before, stays as it is.

    Args:
        normalise: whether to z-score the windows.
        flips: spatial axes of the windows; the probability is the mean over all combinations of mirrored axes.
        options: those of MONAI's class.
    """

    def __init__(self, *, normalise: bool = True, flips: Sequence[int] = (), **options: Any) -> None:
        super().__init__(**options)
        self.normalise = normalise
        axes = [axis + 2 for axis in flips]
        self.flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Returns logits of `inputs`, `(B, C, H, W, D)`, with `network` applied to its windows."""

        def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.normalise:
                axes = tuple(range(2, windows.ndim))
                deviation = windows.std(dim=axes, keepdim=True, correction=0)
                windows = (windows - windows.mean(dim=axes, keepdim=True)) / deviation.where(deviation > 0, 1)
            if len(self.flips) == 1:
                return network(windows, *args, **kwargs)
            logits = [network(windows.flip(axes), *args, **kwargs).flip(axes) for axes in self.flips]
            return torch.logit(torch.stack(logits).float().sigmoid().mean(dim=0), eps=1e-6)

        return super().__call__(inputs, predict, *args, **kwargs)
