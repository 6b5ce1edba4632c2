"""Transforms that MONAI lacks: the brain's box, and the intensities that student and cascaded teacher expect."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import CropForeground, CropForegroundd, MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from numpy.typing import NDArray

from .shared.validation import InputError

__all__ = ["CropBraind", "NormalizeClippedd", "NormalizePositived"]

logger = logging.getLogger(__name__)

Box = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]


def _is_not_zero(scan: torch.Tensor) -> torch.Tensor:
    return scan != 0


class _BrainBox(CropForeground):
    """Crop to the voxels that are not 0 in at least one channel."""

    def __init__(self, *, legacy_bbox: bool) -> None:
        super().__init__(select_fn=_is_not_zero)
        self.legacy_bbox = legacy_bbox

    def compute_bounding_box(self, img: torch.Tensor) -> Box:
        """Returns the first voxels of the box and those after its last."""
        start, end = super().compute_bounding_box(img)
        end = end - int(self.legacy_bbox)
        if (end <= start).any():
            name = img.meta.get("filename_or_obj", "scan") if isinstance(img, MetaTensor) else "scan"
            raise InputError([("", str(name), "there is no brain: the box of its non-zero voxels is empty")])
        return start, end


class CropBraind(CropForegroundd):
    """Crops to the box of all voxels that are not 0 in at least one sequence; `Invertd` undoes it.

    Args:
        keys: volumes `(C, H, W, D)` on one grid.
        source_key: the scan whose box is taken.
        legacy_bbox: leaves out the last slice of the box along every axis, as the reference does, which takes an
            inclusive index for an exclusive one. What is cut off is 0 after inversion.

    Raises:
        InputError: when the box is empty.
    """

    def __init__(self, keys: KeysCollection, source_key: str = "image", *, legacy_bbox: bool = False) -> None:
        super().__init__(keys, source_key, start_coord_key=None, end_coord_key=None)
        self.cropper = _BrainBox(legacy_bbox=legacy_bbox)


class NormalizePositived(MapTransform):
    """Normalises each sequence by its positive voxels: `(v - mean) / deviation` for all voxels, the background too.

    The deviation is that of the population. Background is 0 before and, unlike with MONAI's `NormalizeIntensityd`,
    -mean / deviation after it (about -2.5 to -5), so padding with zeros belongs before this transform. A sequence
    without positive voxels is left as it is, and one in which they are all equal is only shifted, with a warning.

    Args:
        keys: scans `(C, H, W, D)`; they become float32.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its scans normalised."""
        item = dict(data)
        for key in self.key_iterator(item):
            plain = convert_to_tensor(item[key], track_meta=False)
            channels = [self._normalise(channel, _statistics(channel, of=item[key])) for channel in plain]
            item[key] = convert_to_dst_type(torch.stack(channels), item[key], dtype=torch.float32)[0]
        return item

    def _normalise(self, channel: torch.Tensor, statistics: tuple[float, float]) -> torch.Tensor:
        mean, deviation = statistics
        return (channel.float() - mean) / deviation


class NormalizeClippedd(NormalizePositived):
    """Normalises each sequence to [0, 1] as the Cascaded UNet was trained (Lachinov et al., arXiv:1810.04008).

    Scores of the positive voxels as in `NormalizePositived`, clipped to ± `limit`, become
    `(score + limit) / (2 limit)`; all other voxels become 0.

    Args:
        keys: scans `(C, H, W, D)`; they become float32.
        limit: largest score.
    """

    def __init__(self, keys: KeysCollection, *, limit: float = 5.0) -> None:
        super().__init__(keys)
        self.limit = limit

    def _normalise(self, channel: torch.Tensor, statistics: tuple[float, float]) -> torch.Tensor:
        scores = super()._normalise(channel, statistics).clamp_(-self.limit, self.limit)
        return scores.add_(self.limit).div_(2 * self.limit).masked_fill_(channel <= 0, 0)


def _statistics(channel: torch.Tensor, *, of: torch.Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of a channel's positive voxels, in double precision."""
    positive = channel[channel > 0].double()
    mean = float(positive.mean()) if len(positive) else 0.0
    deviation = float(positive.std(correction=0)) if len(positive) else 0.0
    if deviation:
        return mean, deviation
    name = of.meta.get("filename_or_obj", "scan") if isinstance(of, MetaTensor) else "scan"
    found = "all positive voxels are equal" if len(positive) else "there is no positive voxel"
    logger.warning("%s: in one sequence %s, it is not scaled", name, found)
    return mean, 1.0
