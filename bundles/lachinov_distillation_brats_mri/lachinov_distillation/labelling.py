"""From probabilities to label maps with the values of BraTS: of the student's regions, and of the teachers' classes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, optional_import

from .shared.evaluation import voxel_volume
from .shared.regions import VALUES

__all__ = ["LabelRegionsd", "as_bytes", "discretise_classes", "label_regions", "remove_small_components"]

ndimage, _ = optional_import("scipy.ndimage")


def label_regions(
    probabilities: torch.Tensor, *, threshold: float = 0.5, minimum_enhancing: float = 32.0, voxel_volume: float = 1.0
) -> torch.Tensor:
    """Makes a label map of regions, which need not be nested: the smaller one has the last word.

    Where its probability is above the threshold, the whole tumour becomes oedema (2), then the core necrosis (1), then
    enhancing tumour (4), but the latter only if it is larger than `minimum_enhancing` in all.

    Args:
        probabilities: of WT, TC, ET, `(3, H, W, D)`.
        threshold: a probability must exceed it.
        minimum_enhancing: volume in mm³ that enhancing tumour must exceed; 32 voxels of 1 mm³ in the reference.
        voxel_volume: volume of a voxel in mm³.

    Returns:
        `(H, W, D)`, uint8, without metadata.
    """
    plain: torch.Tensor = convert_to_tensor(probabilities, track_meta=False)
    whole, core, enhancing = plain > threshold
    _, necrosis, oedema, enhancing_value = VALUES
    label = torch.zeros(whole.shape, dtype=torch.uint8, device=plain.device)
    label.masked_fill_(whole, oedema).masked_fill_(core, necrosis)
    # Rounded: spacings in files are of single precision.
    if round(int(enhancing.sum()) * voxel_volume, 3) > minimum_enhancing:
        label.masked_fill_(enhancing, enhancing_value)
    return label


def remove_small_components(label: torch.Tensor, *, fraction: float = 0.1) -> torch.Tensor:
    """Removes connected components of foreground that are smaller than a fraction of all foreground.

    Voxels are connected if they share a face, an edge or a corner, whatever their values.

    Args:
        label: label map `(H, W, D)`, 0 is background.
        fraction: of the number of foreground voxels; 0 keeps all.

    Returns:
        The map with the voxels of small components 0, same type.
    """
    plain: torch.Tensor = convert_to_tensor(label, track_meta=False)
    kept = plain.clone()
    foreground = plain.cpu().numpy() > 0
    boxes = ndimage.find_objects(foreground.astype(np.uint8))
    if not boxes:
        return kept
    (box,) = boxes
    components, _ = ndimage.label(foreground[box], np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    small = sizes / sizes[1:].sum() < fraction
    kept[box].masked_fill_(torch.from_numpy(small[components]).to(kept.device), 0)
    return kept


def discretise_classes(probabilities: torch.Tensor) -> torch.Tensor:
    """Makes a label map of class probabilities: the most probable class, the first among equals.

    Args:
        probabilities: of background, necrosis, oedema, enhancing tumour, `(4, H, W, D)`.

    Returns:
        `(H, W, D)`, uint8, with the values 0, 1, 2, 4 and without metadata.
    """
    plain: torch.Tensor = convert_to_tensor(probabilities, track_meta=False)
    return torch.tensor(VALUES, dtype=torch.uint8, device=plain.device)[plain.max(0).indices]


def as_bytes(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns probabilities of any shape as 0 to 255, uint8, as files hold them."""
    return (255 * probabilities).round().clamp(0, 255).to(torch.uint8)


class LabelRegionsd(MapTransform):
    """Makes label maps of region probabilities: `label_regions`, then `remove_small_components`.

    Args:
        keys: probabilities of WT, TC, ET, each a `MetaTensor` `(3, H, W, D)` on the scan's own grid; they become
            `(1, H, W, D)`, uint8, with the same metadata.
        threshold: a probability must exceed it.
        minimum_enhancing: volume in mm³ that enhancing tumour must exceed.
        fraction: of all foreground that a component must have at least.
        soft: whether the probabilities are kept, under `soft`, `as_bytes`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        threshold: float = 0.5,
        minimum_enhancing: float = 32.0,
        fraction: float = 0.1,
        soft: bool = False,
    ) -> None:
        super().__init__(keys)
        self.threshold = threshold
        self.minimum_enhancing = minimum_enhancing
        self.fraction = fraction
        self.soft = soft

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with label maps for probabilities."""
        item = dict(data)
        for key in self.key_iterator(item):
            probabilities: MetaTensor = item[key]
            label = label_regions(
                probabilities,
                threshold=self.threshold,
                minimum_enhancing=self.minimum_enhancing,
                voxel_volume=voxel_volume(probabilities),
            )
            label = remove_small_components(label, fraction=self.fraction)
            if self.soft:
                item["soft"] = convert_to_dst_type(as_bytes(probabilities), probabilities, dtype=torch.uint8)[0]
            item[key] = convert_to_dst_type(label[None], probabilities, dtype=torch.uint8)[0]
        return item
