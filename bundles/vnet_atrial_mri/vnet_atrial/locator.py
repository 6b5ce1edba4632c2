"""From the coarse probability of atrium to the patch that is segmented at full resolution."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms.utils import get_largest_connected_component_mask

from .shared.validation import InputError

__all__ = ["find_box", "has_locator", "patch_size_for", "patch_start"]

logger = logging.getLogger(__name__)

MIN_VOXELS = 10  # a plane belongs to the box when the probabilities in it add up to this


def has_locator(weights: str | Path, *, default: str | Path) -> bool:
    """Returns whether there are weights of a locator; when not, says what follows from it.

    Raises:
        InputError: a file other than `default` was asked for and is not there.
    """
    found = Path(weights).is_file()
    if not found and Path(weights) != Path(default):
        raise InputError([("", str(weights), "there are no such weights")])
    if not found:
        logger.info("%s: no locator, whole volumes are segmented window by window", weights)
    return found


def find_box(probability: torch.Tensor, *, threshold: float | None = 0.5) -> np.ndarray | None:
    """Finds the box of the atrium: first and last plane per axis with `MIN_VOXELS` or more voxels.

    Args:
        probability: `(h, w, d)` in [0, 1].
        threshold: least probability of atrium; only the largest connected component counts. `None` sums probabilities
            as they are, which a soft background inflates to the whole volume: the reference implementation's rule.

    Returns:
        `(3, 2)` first and last plane per axis, or `None` when an axis has fewer than two such planes.
    """
    if threshold is not None:
        probability = get_largest_connected_component_mask(probability > threshold).float()
    box = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        planes = (probability.sum(dim=others) >= MIN_VOXELS).nonzero()
        if len(planes) < 2:
            return None
        box.append((int(planes[0]), int(planes[-1])))
    return np.array(box)


def patch_start(
    box: np.ndarray,
    coarse_affine: torch.Tensor,
    *,
    affine: torch.Tensor,
    patch_size: Sequence[int],
    shape: Sequence[int],
) -> list[int]:
    """Places the patch: centred on the box to half a voxel, shifted to lie inside the image.

    Args:
        box: `(3, 2)` of `find_box`, in voxels of the coarse image.
        coarse_affine: `(4, 4)` of the coarse image.
        affine: `(4, 4)` of the image.
        patch_size: size of the patch in voxels of the image, not larger than it.
        shape: size of the image in voxels.

    Returns:
        First voxel of the patch per axis.
    """
    to_image = torch.linalg.inv(affine.double().cpu()) @ coarse_affine.double().cpu()
    centre = to_image @ torch.tensor([*box.mean(axis=1), 1.0], dtype=torch.float64)
    return [
        min(max(math.ceil(c - size / 2 - 1e-3), 0), full - size)  # its centre is half a voxel below `start + size / 2`
        for c, size, full in zip(centre.tolist(), patch_size, shape, strict=False)
    ]


def patch_size_for(
    boxes: Iterable[np.ndarray], *, scale: Sequence[int], buffer: int = 30, limit: Sequence[int] = (640, 640, 96)
) -> list[int]:
    """Patch size that holds every box: largest extent plus buffer, at most `limit`, rounded up to a multiple of 16.

    Args:
        boxes: `(3, 2)` arrays of `find_box`, in coarse voxels, one per training case.
        scale: voxels of the image per coarse voxel, per axis.
        buffer: voxels of the image added once per axis, half on each side.
        limit: largest size per axis.
    """
    extents = np.max([box[:, 1] - box[:, 0] for box in boxes], axis=0) * np.asarray(scale) + buffer
    return [math.ceil(min(extent, most) / 16) * 16 for extent, most in zip(extents.tolist(), limit, strict=True)]
