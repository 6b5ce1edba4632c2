"""Label maps of several sources as one: the values of their files by name, and the regions that the networks learn."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .shared.regions import CLASSES, VALUES, region_mask
from .shared.volumes import LoadVolume, renumbered

__all__ = ["CHANNELS", "LoadLabeld", "ToRegionsd", "mapped"]

CHANNELS = ("WT", "TC", "ET")  # of the networks' outputs: whole tumour, tumour core, enhancing tumour


def mapped(label: torch.Tensor, label_order: Sequence[str]) -> torch.Tensor:
    """Returns a label map in the values 1 NCR, 2 ED, 4 ET, uint8.

    Args:
        label: label map of any shape; its values are among `range(len(label_order) + 1)`.
        label_order: classes of its values 1, 2, ...
    """
    table = torch.tensor([0, *(VALUES[CLASSES.index(name)] for name in label_order)], dtype=torch.uint8)
    return table.to(label.device)[label.long()]


class LoadLabeld(MapTransform):
    """Loads label maps as `(1, H, W, D)`, uint8, in the values 1 NCR, 2 ED, 4 ET.

    A case with an entry `label_order` has values of another order, one with `label_values` is renumbered by it first.
    A case with a file `soft` has region probabilities instead of a label map: they become `(3, H, W, D)`, float32, from
    WT, TC and ET in 0 to 255.

    Args:
        keys: label maps.
        label_order: classes of the values 1, 2, ... of cases that do not tell.
    """

    def __init__(self, keys: KeysCollection, *, label_order: Sequence[str]) -> None:
        super().__init__(keys)
        self.label_order = list(label_order)
        self._load = LoadVolume(image_only=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the label maps loaded."""
        item = dict(data)
        for key in self.keys:
            if item.get("soft"):
                soft: MetaTensor = self._load(item["soft"])
                regions = soft.as_tensor().movedim(-1, 0).float() / 255
                item[key] = MetaTensor(regions, meta=soft.meta)
            else:
                label: MetaTensor = self._load(item[key])
                if item.get("label_values"):
                    label.copy_(torch.from_numpy(renumbered(label.numpy(), item["label_values"])))
                values = mapped(label.as_tensor(), item.get("label_order") or self.label_order)
                item[key] = MetaTensor(values[None], meta=label.meta)
            item[key].meta["original_channel_dim"] = float("nan")
        return item


class ToRegionsd(MapTransform):
    """Makes of label maps `(1, H, W, D)` masks `(3, H, W, D)` of WT, TC and ET, uint8; leaves probabilities alone."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its label maps as regions."""
        item = dict(data)
        for key in self.key_iterator(item):
            label: MetaTensor = item[key]
            if len(label) == 1:
                masks = torch.cat([region_mask(label, region) for region in CHANNELS])
                item[key] = MetaTensor(masks.to(torch.uint8), meta=label.meta)
        return item
