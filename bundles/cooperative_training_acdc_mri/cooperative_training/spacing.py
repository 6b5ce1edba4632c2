# Identical in every bundle; python -m tools check compares the copies.
"""Resampling that leaves other entries of a case alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import SpacingD

__all__ = ["OwnKeysSpacingd"]


class OwnKeysSpacingd(SpacingD):
    """`Spacingd` that sees its own keys only.

    MONAI 1.6.1's updates every entry whose name starts with `image_`, and fails on the string `image_path` that MONAI
    Label adds.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Returns `data` with its keys resampled."""
        return {**data, **super().__call__({key: data[key] for key in self.key_iterator(data)}, lazy)}
