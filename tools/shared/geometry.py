"""The grid on which voxels lie: what a header may say of it, and when two are the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FRACTION", "Affine", "VolumeError", "apart", "check_grid", "same_grid", "sizes_of", "times"]

Affine = NDArray[np.float64]

SIZES = 0.2, 25.0  # of a voxel in mm; scans of people lie within, and those in other units without
FARTHEST = 5000.0  # mm from the origin
FRACTION = 0.05  # of a voxel's shortest edge by which corners may be off; rounding in headers makes half of it


class VolumeError(ValueError):
    """What is wrong with a file or its header, as the end of a sentence about it."""


def apart(one: ArrayLike, other: ArrayLike, *, shape: Sequence[int]) -> float:
    """Returns by how many mm the corners of two grids of one shape are apart, at most.

    Args:
        one: affine `(4, 4)`.
        other: affine `(4, 4)`.
        shape: voxels along the axes of space.
    """
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size) for size in shape[:3]))])
    moved = (np.asarray(one, np.float64) - np.asarray(other, np.float64)) @ corners.T
    return float(np.linalg.norm(moved[:3], axis=0).max())


def same_grid(one: ArrayLike, other: ArrayLike, *, shape: Sequence[int]) -> bool:
    """Returns whether all corners of two grids of one shape are within a small part of a voxel."""
    return apart(one, other, shape=shape) <= FRACTION * float(sizes_of(np.asarray(one, np.float64)).min())


def check_grid(affine: Affine, shape: Sequence[int]) -> None:
    """Checks that voxels have the size of those of scans, a position, and axes at right angles.

    Raises:
        VolumeError: when not. Axes may be off by what moves no corner by more than a small part of a voxel.
    """
    if not np.isfinite(affine).all():
        raise VolumeError("has axes or a position that are not finite")
    sizes = sizes_of(affine)
    if not ((sizes >= SIZES[0]) & (sizes <= SIZES[1])).all():
        rule = f"has voxels of {times(sizes)} mm, those of scans are {SIZES[0]:g} to {SIZES[1]:g} mm long"
        raise VolumeError(rule)
    if (position := np.abs(affine[:3, 3]).max()) > FARTHEST:
        raise VolumeError(f"lies {position / 1000:.3g} m from the origin, the most is {FARTHEST / 1000:g} m")
    axes = affine[:3, :3] / sizes
    left, _, right = np.linalg.svd(axes)
    straight = affine.copy()
    straight[:3, :3] = left @ right * sizes
    if not same_grid(affine, straight, shape=shape):
        angle = np.degrees(np.arcsin(np.clip(np.abs(axes.T @ axes - np.eye(3)).max(), 0, 1)))
        off = apart(affine, straight, shape=shape)
        raise VolumeError(f"is sheared by {angle:.3g} degrees, which moves corners by {off:.3g} mm (gantry tilt?)")


def sizes_of(affine: Affine) -> Affine:
    """Returns the edges of a voxel in mm."""
    return cast(Affine, np.linalg.norm(affine[:3, :3], axis=0))


def times(sizes: Affine) -> str:
    """Returns sizes as people write them."""
    return " x ".join(f"{size:.3g}" for size in sizes)
