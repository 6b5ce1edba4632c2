"""Transforms that MONAI lacks: intensities within the brain, each sequence by itself, and the reference's cut."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop, Compose, MapTransform, Randomizable
from numpy.random import RandomState

__all__ = ["EachSequenced", "NormalizeBraind", "RearCenterCrop"]


class EachSequenced(Randomizable, MapTransform):
    """Applies random transforms to each sequence by itself: scanners change one sequence, not all alike.

    Args:
        keys: scans `(C, H, W, D)`.
        transform: transforms of arrays `(1, H, W, D)`, which draw again for every sequence.
    """

    def __init__(self, keys: KeysCollection, *, transform: Compose) -> None:
        super().__init__(keys)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: RandomState | None = None) -> EachSequenced:
        """Seeds the transforms."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its scans changed."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.cat([self.transform(sequence) for sequence in item[key].split(1)])
        return item


class NormalizeBraind(MapTransform):
    """Normalises each sequence within the brain as the reference does, to [0, 1].

    Mean and standard deviation of the brain's voxels give z-scores; those above `upper` are cut, and the lowest of the
    whole volume becomes 0 and `upper` becomes 1.

    Args:
        keys: scans `(C, H, W, D)`.
        mask_key: brain `(1, H, W, D)`.
        upper: highest z-score.
    """

    def __init__(self, keys: KeysCollection, *, mask_key: str = "brain", upper: float = 3.0) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its scans normalised."""
        item = dict(data)
        for key in self.key_iterator(item):
            scan: MetaTensor = item[key]
            inside = scan.as_tensor()[:, item[self.mask_key][0] > 0]
            mean, deviation = inside.mean(1), inside.std(1, correction=0)
            shape = (-1, 1, 1, 1)
            scores = ((scan - mean.view(shape)) / deviation.view(shape)).clamp(max=self.upper)
            lowest = scores.amin((1, 2, 3), keepdim=True)
            item[key] = (scores - lowest) / (self.upper - lowest)
        return item


class RearCenterCrop(CenterSpatialCrop):
    """Central crop that leaves out one voxel more in front than behind where they are odd, as the reference does."""

    def compute_slices(self, spatial_size: Sequence[int]) -> tuple[slice, ...]:
        """Returns the slices for a volume of `spatial_size`."""
        starts = [max(size - kept + 1, 0) // 2 for size, kept in zip(spatial_size, self.roi_size, strict=True)]
        return tuple(slice(start, start + kept) for start, kept in zip(starts, self.roi_size, strict=True))
