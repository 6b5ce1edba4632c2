"""Inference of stacks of slices with a 2D network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["StackInferer"]


class StackInferer(Inferer):
    """Passes whole slices `[..., z]` of volumes through a 2D network, several at once.

    Args:
        sw_batch_size: slices per pass at most.
        flips: axes of a slice, 0 or 1; with some, the answer is the logarithm of the mean of the probabilities over all
            combinations of mirrored axes.
    """

    def __init__(self, sw_batch_size: int = 32, *, flips: Sequence[int] = ()) -> None:
        super().__init__()
        self.sw_batch_size = sw_batch_size
        axes = [axis + 2 for axis in flips]
        self.flips = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Returns the network's logits `(B, C, H, W, D)` for volumes `(B, 1, H, W, D)`."""

        def answer(part: torch.Tensor) -> torch.Tensor:
            if len(self.flips) == 1:
                return network(part, *args, **kwargs)
            found = [network(part.flip(axes), *args, **kwargs).softmax(1).flip(axes) for axes in self.flips]
            return torch.stack(found).mean(0).log()

        volumes = convert_to_tensor(inputs, track_meta=False)
        slices = volumes.movedim(-1, 1).flatten(0, 1)
        outputs = torch.cat([answer(part) for part in slices.split(self.sw_batch_size)])
        stacks = outputs.reshape(len(volumes), -1, *outputs.shape[1:]).movedim(1, -1)
        return convert_to_dst_type(stacks, inputs)[0]
