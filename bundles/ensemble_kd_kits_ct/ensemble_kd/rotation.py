"""Rotation of training patches in their plane, with labels and soft labels that keep their true surroundings."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .shared.validation import InputError

__all__ = ["MODES", "rotate", "rotate_cubes", "surround"]

MODES = ("linear", "nearest", "spline")


def surround(window: int, *, zoom: float = 1.0) -> int:
    """Returns how many voxels on each side of a window an angle can turn into it, if it shows `zoom` times as much."""
    return math.ceil((math.sqrt(2) * zoom - 1) * window / 2)


def rotate(
    images: torch.Tensor,
    angles: torch.Tensor,
    *,
    size: int | None = None,
    mode: str = "linear",
    zooms: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotates square images about their centres and returns the middle of the results.

    The conventions are those of `scipy.ndimage.rotate(image, angle, reshape=False, mode="reflect")`: with u the offset
    of a pixel from the centre along the first axis and v along the second, the result at (u, v) is the image at
    (u cos a + v sin a, -u sin a + v cos a), and beyond its borders the image is mirrored: c b a | a b c | c b a.

    Args:
        images: `(N, C, P, P)`, floating point.
        angles: `(N,)` in degrees.
        size: edge of what is returned in pixels, P or less by an even number; P by default.
        mode: `linear`, `nearest` (for labels) or `spline`, the cubic one of SciPy.
        zooms: `(N,)`, how many pixels of an image lie beside each other where the result has one, not for splines; by
            default 1.

    Returns:
        `(N, C, size, size)`.

    Raises:
        InputError: when the images are not square, the mode is another or has no zoom, or the middle is not on their
            pixels.
    """
    edge = images.shape[-1]
    size = edge if size is None else size
    _check(images, size, mode=mode, zooms=zooms)
    if mode == "spline":
        return _splines(images, angles)[..., (edge - size) // 2 :, (edge - size) // 2 :][..., :size, :size]
    offsets = (2 * torch.arange(size, dtype=images.dtype) + 1 - size) / edge
    radians = torch.deg2rad(angles.double())
    scale = 1 if zooms is None else zooms.double()
    along, across = (offsets * (scale * turn)[:, None].to(offsets) for turn in (radians.cos(), radians.sin()))
    # Components first: with them last, as affine_grid writes them, this takes as long as the interpolation.
    grid = images.new_empty(len(images), 2, size, size)
    torch.sub(along[:, None], across[:, :, None], out=grid[:, 0])
    torch.add(across[:, None], along[:, :, None], out=grid[:, 1])
    kernel = "bilinear" if mode == "linear" else "nearest"
    return functional.grid_sample(images, grid.permute(0, 2, 3, 1), kernel, "reflection", align_corners=False)


def _check(images: torch.Tensor, size: int, *, mode: str, zooms: torch.Tensor | None) -> None:
    edge = images.shape[-1]
    if mode not in MODES:
        raise InputError([("", "mode", f"must be one of {', '.join(MODES)}, got {mode}")])
    if images.shape[-2] != edge or not 0 < size <= edge or (edge - size) % 2:
        rule = f"must be {edge} or less by an even number, of square images, got {size} of {tuple(images.shape[-2:])}"
        raise InputError([("", "size", rule)])
    if mode == "spline" and zooms is not None:
        raise InputError([("", "interpolation", "spline does not scale: set scaling to null")])


def _splines(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    found = np.stack(
        [
            ndimage.rotate(image, angle, axes=(1, 2), reshape=False, order=3, mode="reflect")
            for image, angle in zip(images.numpy(), angles.tolist(), strict=True)
        ]
    )
    return torch.from_numpy(found)


def rotate_cubes(
    cubes: torch.Tensor,
    angles: torch.Tensor,
    *,
    fixed: torch.Tensor,
    size: int | None = None,
    mode: str = "linear",
    zooms: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotates each cube in one plane, see `rotate`, and returns the middle of the results.

    Args:
        cubes: `(N, C, P, P, P)`, floating point.
        angles: `(N,)` in degrees.
        fixed: `(N,)`, the axis that is not in the plane, 0 to 2.
        size: edge of what is returned in voxels, P or less by an even number; P by default.
        mode: as for `rotate`.
        zooms: as for `rotate`, in that plane.

    Returns:
        `(N, C, size, size, size)`.

    Raises:
        InputError: as for `rotate`.
    """
    size = cubes.shape[-1] if size is None else size
    border = (cubes.shape[-1] - size) // 2
    found = cubes.new_empty(*cubes.shape[:2], size, size, size)
    for axis in range(3):
        members = torch.nonzero(fixed == axis).flatten()
        if len(members):
            slices = cubes[members].narrow(axis + 2, border, size).movedim(axis + 2, 2)
            scales = None if zooms is None else zooms[members]
            turned = rotate(slices.flatten(1, 2), angles[members], size=size, mode=mode, zooms=scales)
            found[members] = turned.view(*slices.shape[:3], size, size).movedim(2, axis + 2)
    return found
