"""From the probabilities of both stages to the label map: the second stage counts inside what the first one found."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage

from .shared.validation import InputError

__all__ = ["LabelInsideOrgand", "organ_mask"]

SOURCES = ("none", "stage1", "reference")


def organ_mask(foreground: torch.Tensor, *, num_components: int = 2, dilate: int = 0) -> torch.Tensor:
    """Returns the largest components of a mask, grown.

    Components are those of 26 neighbours; where there are fewer than asked for, all of them stay. Of equal ones the one
    that begins first in memory is kept, as in the reference implementation; MONAI's `KeepLargestConnectedComponent`
    keeps the last.

    Args:
        foreground: boolean mask `(H, W, D)`.
        num_components: how many to keep: the two kidneys.
        dilate: voxels to add on every side, by dilation with a cube of 2 * dilate + 1 voxels. The reference
            implementation adds 2.

    Returns:
        Boolean mask `(H, W, D)`, on the device of `foreground`.
    """
    components, _ = ndimage.label(foreground.cpu().numpy(), np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    kept = np.isin(components, 1 + np.argsort(-sizes, kind="stable")[:num_components])
    if dilate:
        kept = ndimage.maximum_filter(kept, 2 * dilate + 1, mode="constant")
    return torch.from_numpy(kept).to(foreground.device)


class LabelInsideOrgand(MapTransform):
    """Turns class probabilities into the label map argmax(p) * M.

    M is the organ's mask. The second stage saw only patches around kidneys and tumours, so what it says elsewhere has
    no meaning. The reference implementation has no automatic mask and takes that of the reference labels.

    Args:
        keys: `(C, H, W, D)`, probabilities of the classes first and, for `stage1`, that of the organ last; channels
            between them are ignored. They become uint8 label maps `(1, H, W, D)`.
        classes: how many classes the label map has, background included.
        clip_source: whence M comes. `stage1`: the largest components of where the organ's probability is above 0.5, see
            `organ_mask`. `reference`: where the label map `reference_key` is above 0. `none`: M is everywhere.
        reference_key: label map `(1, H, W, D)` on the grid of the probabilities.
        num_components: see `organ_mask`.
        dilate: see `organ_mask`.

    Raises:
        InputError: when an argument is out of range, or the probabilities have too few channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        classes: int = 3,
        clip_source: str = "stage1",
        reference_key: str = "label",
        num_components: int = 2,
        dilate: int = 0,
    ) -> None:
        super().__init__(keys)
        if clip_source not in SOURCES:
            raise InputError([("", "clip_source", f"must be one of {', '.join(SOURCES)}, got {clip_source!r}")])
        for name, value, least in (
            ("classes", classes, 2),
            ("num_components", num_components, 1),
            ("dilate", dilate, 0),
        ):
            if value < least:
                raise InputError([("", name, f"must be at least {least}, got {value}")])
        self.classes = classes
        self.clip_source = clip_source
        self.reference_key = reference_key
        self.num_components = num_components
        self.dilate = dilate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with label maps in the place of probabilities; their meta data stay."""
        item = dict(data)
        for key in self.key_iterator(item):
            self._check(item[key], key)
            probabilities = convert_to_tensor(item[key], track_meta=False)
            label = probabilities[: self.classes].argmax(0, keepdim=True).to(torch.uint8)
            if self.clip_source != "none":
                label *= self._mask(probabilities, item)
            item[key] = convert_to_dst_type(label, item[key], dtype=torch.uint8)[0]
        return item

    def _mask(self, probabilities: torch.Tensor, item: Mapping[Hashable, Any]) -> torch.Tensor:
        if self.clip_source == "reference":
            reference = convert_to_tensor(item[self.reference_key], track_meta=False, device=probabilities.device)
            return reference > 0
        organ = probabilities[-1] > 0.5
        return organ_mask(organ, num_components=self.num_components, dilate=self.dilate)

    def _check(self, probabilities: torch.Tensor, key: Hashable) -> None:
        channels = self.classes + (self.clip_source == "stage1")
        if len(probabilities) < channels:
            meta = probabilities.meta if isinstance(probabilities, MetaTensor) else {}
            name = str(meta.get("filename_or_obj", key))
            rule = f"{key} needs {channels} channels for clip_source {self.clip_source!r}, it has {len(probabilities)}"
            raise InputError([("", name, rule)])
