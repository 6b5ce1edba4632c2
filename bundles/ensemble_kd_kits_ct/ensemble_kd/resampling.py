"""Resampling to the spacing of the networks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage

from .shared.spacing import OwnKeysSpacingd
from .shared.validation import InputError

__all__ = ["SmoothedSpacingd"]

# Spacings in mm that differ by less are the same: the tolerance of MONAI's `Spacing`, which then resamples nothing.
SAME = 1e-3
KEPT = -1


class SmoothedSpacingd(OwnKeysSpacingd):
    """`Spacingd` after a Gaussian along every axis whose spacing changes, against aliasing.

    Its deviation is 0.5 * new / old spacing, in voxels of the scan, and the border voxels continue outside. Unlike in
    the reference implementation, an axis that has the new spacing already is left as it is. `Invertd` undoes the
    resampling, not the smoothing.

    Args:
        keys: volumes `(C, H, W, D)`.
        pixdim: new spacing in mm, one for each axis; -1 keeps that of the scan.
        mode: interpolation of each key or of all, as for `Spacingd`. Those of mode `nearest` or 0, the label maps, are
            not smoothed; the others become float32 first.

    Raises:
        InputError: when `pixdim` is not three positive numbers, or -1.
    """

    def __init__(
        self, keys: KeysCollection, pixdim: Sequence[float], *, mode: str | int | Sequence[str | int] = "bilinear"
    ) -> None:
        _check_spacing([abs(step) if step == KEPT else step for step in pixdim])
        super().__init__(keys, pixdim, mode=mode)
        self.new_spacing = [float(step) for step in pixdim]

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Returns `data` with its keys smoothed and resampled."""
        item = dict(data)
        for key, mode in self.key_iterator(item, self.mode):
            if not _is_nearest(mode):
                item[key] = _smooth(item[key], _factors(item[key], self.new_spacing))
        return super().__call__(item, lazy)


def _check_spacing(pixdim: Sequence[float]) -> None:
    if len(pixdim) != 3 or not all(step > 0 and math.isfinite(step) for step in pixdim):
        raise InputError([("", "pixdim", f"must be three positive numbers, in mm, got {list(pixdim)}")])


def _is_nearest(mode: str | int) -> bool:
    return mode in ("nearest", 0)


def _factors(volume: MetaTensor, new: Sequence[float]) -> list[float | None]:
    """Returns old / new spacing of each axis, and `None` for those that need no change."""
    pairs = zip(volume.pixdim.tolist(), new, strict=True)
    return [None if step == KEPT or abs(old - step) < SAME else old / step for old, step in pairs]


def _smooth(volume: MetaTensor, factors: Sequence[float | None]) -> MetaTensor:
    """Returns the volume as float32, smoothed along the axes that have a factor."""
    channels = list(convert_to_tensor(volume, track_meta=False).float().cpu().numpy())
    for axis, factor in enumerate(factors):
        if factor is not None:
            channels = [ndimage.gaussian_filter1d(part, 0.5 / factor, axis, mode="nearest") for part in channels]
    return convert_to_dst_type(np.stack(channels), volume, dtype=torch.float32)[0]
