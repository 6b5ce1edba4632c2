"""From the organs that a first network finds to the second network's classes inside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import SpatialCrop
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import nn

from .postprocessing import organ_mask

__all__ = ["CascadeInferer"]

logger = logging.getLogger(__name__)

Network = Callable[..., torch.Tensor]


class CascadeInferer(Inferer):
    """Lets a locator find the organs, and shows the network the box around them only.

    Args:
        locator: network with two classes, background and organs.
        locator_inferer: makes its class probabilities of a whole scan.
        inferer: makes class probabilities of what is shown of a scan.
        components: how many organs there are; smaller connected components (26 neighbours) are not looked at.
        context: voxels around the organs' box that the network sees, along each axis, and what it says of them counts.
    """

    def __init__(
        self, locator: nn.Module, *, locator_inferer: Inferer, inferer: Inferer, components: int = 2, context: int = 24
    ) -> None:
        super().__init__()
        self.locator = locator.eval()
        self.locator_inferer = locator_inferer
        self.inferer = inferer
        self.context = context
        self.components = components

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the network's channels and one more, the probability of organ.

        Args:
            inputs: a scan `(1, 1, H, W, D)`; its grid and its file are handed on to the network.
            network: gives channels of which the first is the background's probability.
            args: more arguments of the network.
            kwargs: likewise.

        Returns:
            `(1, channels + 1, H, W, D)`. Outside the box the first channel is 1 and the others are 0; without any organ
            so is the whole scan.
        """
        organ = convert_to_tensor(self.locator_inferer(inputs, self.locator), track_meta=False)[:, 1:2]
        box = self._box(organ[0])
        scan = inputs[0]
        crop = SpatialCrop(roi_slices=box)
        shown = crop(scan if isinstance(scan, MetaTensor) else MetaTensor(scan))[None]
        inside = convert_to_tensor(self.inferer(shown, network, *args, **kwargs), track_meta=False).to(organ.dtype)
        maps = organ.new_zeros((1, inside.shape[1] + 1, *organ.shape[2:]))
        maps[:, 0] = 1
        maps[:, -1:] = organ
        if organ.max() > 0.5:
            maps[(slice(None), slice(0, -1), *box)] = inside.to(organ.device)
        else:
            name = scan.meta.get("filename_or_obj", "scan") if isinstance(scan, MetaTensor) else "scan"
            logger.warning("%s: the first stage finds no organ, so all of it is background", name)
        return convert_to_dst_type(maps, inputs, dtype=maps.dtype)[0]

    def _box(self, organ: torch.Tensor) -> Sequence[slice]:
        """Returns the box of the organs with its context; where there are none, one at the corner for its channels."""
        mask = organ_mask(organ[0] > 0.5, num_components=self.components)
        slices = []
        for axis, size in enumerate(mask.shape):
            planes = mask.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [0]
            slices.append(slice(max(planes[0] - self.context, 0), min(planes[-1] + 1 + self.context, size)))
        return slices
