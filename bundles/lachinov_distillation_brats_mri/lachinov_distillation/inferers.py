"""Inference: mean of a scan's mirror images, and of a network that sees scans at a fixed size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch.nn import functional

from .conversions import region_probabilities
from .shared.validation import InputError

__all__ = ["FlipAverageInferer", "ResizedInferer"]

Network = Callable[..., torch.Tensor]
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(1),
    "regions": lambda logits: region_probabilities(logits.softmax(1)),
    "none": lambda outputs: outputs,
}


class FlipAverageInferer(Inferer):
    """Mean of the probabilities that a network gives for a scan and its mirror images.

    The default flips are the reference's, of the first two axes; `[[]]` stands for the scan alone.

    Args:
        flips: for each pass the spatial axes that are flipped, 0 to 2.
        activation: what makes probabilities of the network's outputs: `sigmoid`, `softmax` (over
            classes), `regions` (that, and the classes' sums in WT, TC and ET) or `none`.
        inferer: how the network is applied in each pass, at once by default.

    Raises:
        InputError: when there is no pass, or the activation is another.
    """

    def __init__(
        self,
        flips: Sequence[Sequence[int]] = ((), (0,), (1,), (0, 1)),
        *,
        activation: str = "sigmoid",
        inferer: Inferer | None = None,
    ) -> None:
        super().__init__()
        if not flips:
            raise InputError([("", "flips", "must hold one pass or more")])
        if activation not in ACTIVATIONS:
            raise InputError([("", "activation", f"must be one of {', '.join(ACTIVATIONS)}, got {activation}")])
        self.flips = [tuple(flip) for flip in flips]
        self.activation = activation
        self.inferer = inferer or SimpleInferer()

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the mean probabilities.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: gives outputs of the same spatial size.
            args: more arguments of the network.
            kwargs: likewise.

        Returns:
            `(B, classes, H, W, D)`, float32, also where autocast lets the network answer in half precision.
        """
        volumes = convert_to_tensor(inputs, track_meta=False)

        def answer(flip: tuple[int, ...]) -> torch.Tensor:
            axes = [axis + 2 for axis in flip]
            outputs = self.inferer(volumes.flip(axes), network, *args, **kwargs)
            return ACTIVATIONS[self.activation](outputs.float()).flip(axes)

        # Added in place: flips are copies.
        mean = reduce(torch.Tensor.add_, map(answer, self.flips)).div_(len(self.flips))
        return convert_to_dst_type(mean, inputs, dtype=torch.float32)[0]


class ResizedInferer(Inferer):
    """Shows a network scans at the one size it was trained with, and brings its answer back to theirs.

    Both ways by trilinear interpolation without aligned corners. For interpolated probabilities the `inferer` has to
    make them of the network's outputs, as `FlipAverageInferer` does.

    Args:
        size: spatial size that the network sees, in voxels.
        inferer: how the network is applied at that size, at once by default.
    """

    def __init__(self, size: Sequence[int], *, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.size = tuple(size)
        self.inferer = inferer or SimpleInferer()

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the network's answer `(B, classes, H, W, D)`, float32, for volumes `(B, C, H, W, D)`."""
        volumes = convert_to_tensor(inputs, track_meta=False)
        answer = self.inferer(_resized(volumes, self.size), network, *args, **kwargs)
        return convert_to_dst_type(_resized(answer, volumes.shape[2:]), inputs, dtype=torch.float32)[0]


def _resized(volumes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(volumes.float(), tuple(size), mode="trilinear", align_corners=False)
