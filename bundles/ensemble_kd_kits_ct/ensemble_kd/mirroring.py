"""Inference on a scan and its mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from .shared.validation import InputError

__all__ = ["MirroredInferer"]


class MirroredInferer(Inferer):
    """Mean of the probabilities for a scan and for all that it is mirrored along some axes.

    Args:
        inferer: makes probabilities of a scan.
        axes: spatial axes, 0 to 2, for networks that were trained with mirroring along them; 2 ** n passes for n axes.

    Raises:
        InputError: if an axis is another, or is repeated.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int] = ()) -> None:
        super().__init__()
        if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            rule = f"must be some of 0, 1 and 2, none of them twice, got {list(axes)}"
            raise InputError([("", "test_time_flips", rule)])
        self.inferer = inferer
        self.flips = [dims for count in range(1, len(axes) + 1) for dims in combinations(sorted(axes), count)]

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Returns what the inferer gives, `(B, C, H, W, D)`, or the mean over the mirror images.

        Args:
            inputs: `(B, channels, H, W, D)`.
            network: what the inferer takes.
            args: more arguments of the network.
            kwargs: likewise.
        """
        found: torch.Tensor = self.inferer(inputs, network, *args, **kwargs)
        if not self.flips:
            return found
        volumes, total = (convert_to_tensor(volume, track_meta=False) for volume in (inputs, found))
        for axes in self.flips:
            dims = [axis + 2 for axis in axes]
            total = total + self.inferer(volumes.flip(dims), network, *args, **kwargs).flip(dims)
        return convert_to_dst_type(total / (1 + len(self.flips)), found)[0]
