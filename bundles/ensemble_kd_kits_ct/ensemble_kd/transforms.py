"""From small scans to larger ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import BorderPad, MapTransform

__all__ = ["PadSmalld"]


class PadSmalld(MapTransform):
    """Pads the volumes of a case by `window // 2` voxels on all six sides when one of its axes is below the window.

    Images and labels become 0 there, soft labels 1 for class 0 and 0 for the others.

    Args:
        keys: volumes `(C, H, W, D)` on one grid.
        window: edge of the label's window in voxels.
        soft_key: which of the volumes holds soft labels, if it is there.
    """

    def __init__(
        self, keys: KeysCollection, window: int, *, soft_key: str = "soft", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.window = window
        self.soft_key = soft_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its volumes padded if they are small."""
        item = dict(data)
        pad = BorderPad(self.window // 2)
        for key in self.key_iterator(item):
            if min(item[key].shape[1:]) < self.window:
                outside = 1 - pad(torch.ones_like(torch.as_tensor(item[key][:1])))[0]
                item[key] = pad(item[key])
                if key == self.soft_key:
                    item[key][0] += outside
        return item
