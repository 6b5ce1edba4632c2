"""Resampling that leaves other entries of a case alone, and does not mind rounding in headers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import SpacingD

__all__ = ["OwnKeysSpacingd"]


class OwnKeysSpacingd(SpacingD):
    """`Spacingd` that sees its own keys only, and oblique volumes as it sees straight ones.

    MONAI 1.6.1's updates every entry whose name starts with `image_`, and fails on the string `image_path` that MONAI
    Label adds. It also samples a volume at other points when the axes of its header are not orthogonal to 1e-8, which
    those of oblique scans, stored in single precision, never are.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Returns `data` with its keys resampled."""
        own = {key: _without_shear(data[key]) for key in self.key_iterator(data)}
        return {**data, **super().__call__(own, lazy)}


def _without_shear(volume: MetaTensor) -> MetaTensor:
    """Returns the volume with exactly orthogonal axes of the same lengths."""
    affine = volume.affine.double().clone()
    lengths = affine[:3, :3].norm(dim=0)
    left, _, right = torch.linalg.svd(affine[:3, :3] / lengths)
    affine[:3, :3] = left @ right * lengths
    operations = volume.applied_operations
    meta = {**volume.meta, "affine": affine}
    return MetaTensor(volume.as_tensor(), meta=meta, applied_operations=operations)
