"""What training does to a batch of patches after it is cut: rotation, scaling, mirroring and changes of intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.transforms import Compose
from monai.utils import MAX_SEED, convert_to_tensor

from .rotation import rotate, rotate_cubes

__all__ = ["changed", "mirrored", "turned"]


def turned(
    patches: torch.Tensor,
    angles: torch.Tensor,
    *,
    fixed: torch.Tensor | None,
    size: int,
    mode: str,
    zooms: torch.Tensor | None,
) -> torch.Tensor:
    """Returns the middle of patches that are rotated and scaled, see `rotation.rotate`.

    Args:
        patches: squares `(N, C, P, P)` or, with `fixed`, cubes `(N, C, P, P, P)`.
        angles: `(N,)` in degrees.
        fixed: `(N,)`, which axis of each cube is not in the plane.
        size: edge of what is returned.
        mode: interpolation.
        zooms: `(N,)` or nothing.
    """
    if fixed is None:
        return rotate(patches, angles, size=size, mode=mode, zooms=zooms)
    return rotate_cubes(patches, angles, fixed=fixed, size=size, mode=mode, zooms=zooms)


def mirrored(
    batch: Mapping[str, torch.Tensor],
    across: Sequence[int | None],
    *,
    along: Sequence[int],
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Mirrors every patch, with a probability of a half for each axis, and its labels with it.

    Args:
        batch: volumes `(N, C, h, w)` or `(N, C, h, w, d)` of the same patches.
        across: the axis of the scan across which each patch was cut; `None` for a cube.
        along: axes of the scan, 0 to 2; that across which a patch was cut does nothing to it.
        generator: source of the coins.
    """
    coins = generator.integers(2, size=(len(across), len(along))).astype(bool)
    result = {key: patches.clone() for key, patches in batch.items()}
    for number, cut in enumerate(across):
        axes = [axis for axis, drawn in zip(along, coins[number], strict=True) if drawn and axis != cut]
        dims = [1 + axis - (cut is not None and axis > cut) for axis in axes]
        for patches in result.values() if dims else ():
            patches[number] = patches[number].flip(dims)
    return result


def changed(images: torch.Tensor, transform: Compose, *, generator: np.random.Generator) -> torch.Tensor:
    """Returns images `(N, 1, ...)`, each through the random transform, which is seeded by the generator."""
    transform.set_random_state(seed=int(generator.integers(MAX_SEED)))
    return torch.stack([convert_to_tensor(transform(image), track_meta=False) for image in images])
