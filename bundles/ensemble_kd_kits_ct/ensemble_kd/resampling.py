"""Resampling to the spacing of the networks, on a grid of that very spacing or from corner to corner of the scan."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from .shared.spacing import OwnKeysSpacingd
from .shared.validation import InputError

__all__ = ["CornerAlignedZoomd", "SmoothedSpacingd", "zoom_back"]

# Spacings in mm that differ by less are the same: the tolerance of MONAI's `Spacing`, which then resamples nothing.
SAME = 1e-3
KEPT = -1
Channel = NDArray[np.float32]
Factors = Sequence[float | None]


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


class CornerAlignedZoomd(MapTransform, InvertibleTransform):
    """Resampling of the reference implementation: the corners of both grids coincide.

    A Gaussian as in `SmoothedSpacingd`, then a cubic spline, to m = round(n * old / new) voxels along an axis of n. The
    new voxel j lies at the old j * (n - 1) / (m - 1), so the true spacing, which the affine gets, is
    old * (n - 1) / (m - 1) and only near the one asked for. Where all are right already, only the type changes.

    The inverse is linear, on the corners likewise; see `zoom_back`.

    Args:
        keys: volumes `(C, H, W, D)`; they become float32.
        pixdim: new spacing in mm, one for each axis.
        mode: of each key or of all: `spline`, or `nearest` for label maps, which are not smoothed.
        smooth_all: whether axes that have the new spacing already are smoothed too, as in the reference implementation
            (by half a voxel).

    Raises:
        InputError: when `pixdim` is not three positive numbers, a mode is another, or a volume is so thin that no voxel
            would be left.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        *,
        mode: str | Sequence[str] = "spline",
        smooth_all: bool = False,
    ) -> None:
        super().__init__(keys)
        _check_spacing(pixdim)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if not set(self.mode) <= {"spline", "nearest"}:
            raise InputError([("", "mode", f"must be spline or nearest, got {', '.join(self.mode)}")])
        self.new_spacing = [float(step) for step in pixdim]
        self.smooth_all = smooth_all

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its keys resampled."""
        item = dict(data)
        for key, mode in self.key_iterator(item, self.mode):
            item[key] = self._zoom(item[key], mode)
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its keys back on the grid that they had before."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = item[key]
            info = self.pop_transform(volume)
            found = zoom_back(volume, info["orig_size"], nearest=info["extra_info"]["mode"] == "nearest")
            item[key] = convert_to_dst_type(found, volume, dtype=found.dtype)[0]
            item[key].affine = volume.affine @ torch.linalg.inv(info["extra_info"]["step"])
        return item

    def _zoom(self, volume: MetaTensor, mode: str) -> MetaTensor:
        size, factors = tuple(volume.shape[1:]), _factors(volume, self.new_spacing, all_axes=self.smooth_all)
        if mode == "spline":
            volume = _smooth(volume, factors)
        scales = [1.0 if factor is None else factor for factor in _factors(volume, self.new_spacing)]
        channels = [_zoomed(channel, scales, order=3 if mode == "spline" else 0) for channel in _channels(volume)]
        found = convert_to_dst_type(np.stack(channels), volume, dtype=torch.float32)[0]
        if 0 in found.shape:
            name = str(volume.meta.get("filename_or_obj", "scan"))
            raise InputError([("", name, f"its {size} voxels are too thin for the spacing {self.new_spacing} mm")])
        sizes = zip(size, found.shape[1:], scales, strict=True)
        steps = [_step(old, new, scale=scale) for old, new, scale in sizes]
        matrix = torch.diag(torch.tensor([*steps, 1.0], dtype=torch.float64))
        # The name of the inverse's interpolation is one that `Invertd` knows: it may ask for the nearest voxel instead.
        inverse = {"mode": "bilinear" if mode == "spline" else mode, "step": matrix}
        self.push_transform(found, affine=matrix, orig_size=size, extra_info=inverse)
        return found


def zoom_back(volume: torch.Tensor, size: Sequence[int], *, nearest: bool = False) -> torch.Tensor:
    """Interpolates a volume to another size, the corners of both grids coinciding.

    Args:
        volume: `(C, H, W, D)`.
        size: new spatial size in voxels.
        nearest: whether voxels take the value of the nearest one, as label maps need; otherwise they are interpolated
            linearly.

    Returns:
        Volume of the new size, float32 or float64 as `volume` is; without meta data.
    """
    plain = convert_to_tensor(volume, track_meta=False)
    plain = plain.to(torch.promote_types(plain.dtype, torch.float32))
    if not nearest:
        return functional.interpolate(plain[None], tuple(size), mode="trilinear", align_corners=True)[0]
    for axis, (old, new) in enumerate(zip(plain.shape[1:], size, strict=True), start=1):
        steps = torch.arange(new, device=plain.device, dtype=torch.float64) * _step(old, new, scale=1)
        plain = plain.index_select(axis, (steps + 0.5).floor().long().clamp(max=old - 1))
    return plain


def _check_spacing(pixdim: Sequence[float]) -> None:
    if len(pixdim) != 3 or not all(step > 0 and math.isfinite(step) for step in pixdim):
        raise InputError([("", "pixdim", f"must be three positive numbers, in mm, got {list(pixdim)}")])


def _is_nearest(mode: str | int) -> bool:
    return mode in ("nearest", 0)


def _factors(volume: MetaTensor, new: Sequence[float], *, all_axes: bool = False) -> list[float | None]:
    """Returns old / new spacing of each axis, and `None` for those that need no change."""
    pairs = zip(volume.pixdim.tolist(), new, strict=True)
    return [None if step == KEPT or (abs(old - step) < SAME and not all_axes) else old / step for old, step in pairs]


def _channels(volume: torch.Tensor) -> list[Channel]:
    return list(convert_to_tensor(volume, track_meta=False).float().cpu().numpy())


def _smooth(volume: MetaTensor, factors: Factors) -> MetaTensor:
    """Returns the volume as float32, smoothed along the axes that have a factor."""
    channels = _channels(volume)
    for axis, factor in enumerate(factors):
        if factor is not None:
            channels = [ndimage.gaussian_filter1d(part, 0.5 / factor, axis, mode="nearest") for part in channels]
    return convert_to_dst_type(np.stack(channels), volume, dtype=torch.float32)[0]


def _zoomed(channel: Channel, scales: Sequence[float], *, order: int) -> Channel:
    if all(scale == 1 for scale in scales):
        return channel
    # Label maps, too, take the nearest voxel at the rim: rounding can put the last point beyond it.
    return ndimage.zoom(channel, scales, order=order, mode="nearest")


def _step(old: int, new: int, *, scale: float) -> float:
    """Returns how many voxels of an axis one step on the new axis is; where one has no length, the nominal one."""
    return (old - 1) / (new - 1) if old > 1 and new > 1 else 1 / scale
