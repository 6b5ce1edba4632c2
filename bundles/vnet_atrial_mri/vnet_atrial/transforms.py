"""Transforms that MONAI lacks: coarse-to-fine cropping and level sets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, CropForegroundd, InvertibleTransform, MapTransform
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import convert_to_dst_type, optional_import
from torch import nn

from .locator import find_box, patch_start
from .shared.validation import InputError

__all__ = ["CropAroundd", "LevelSetd", "LocateAtriumd", "affine_reach", "level_set"]

logger = logging.getLogger(__name__)
ndimage, _ = optional_import("scipy.ndimage")


class LocateAtriumd(MapTransform, InvertibleTransform):
    """Crops a patch of fixed size around the left atrium, found by a coarse network; invertible.

    When the network finds no atrium the image stays whole, a warning names the file, and `meta["atrium_found"]` is
    False.

    Args:
        keys: images `(1, H, W, D)`, at least as large as the patch.
        locator: network that maps the coarse image `(1, 1, h, w, d)` to logits of the same shape.
        coarse: transform from the image to the network's input; must keep track of the affine.
        patch_size: size of the crop in voxels.
        threshold: least probability of atrium.
        required: whether a missing atrium is an error.
        device: where the network runs.
    """

    def __init__(
        self,
        keys: KeysCollection,
        locator: nn.Module,
        *,
        coarse: Callable[[MetaTensor], MetaTensor],
        patch_size: Sequence[int],
        threshold: float = 0.5,
        required: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(keys)
        self.locator = locator
        self.coarse = coarse
        self.patch_size = tuple(patch_size)
        self.threshold = threshold
        self.required = required
        self.device = device
        self.crop = Crop()

    @torch.inference_mode()
    def probability(self, image: MetaTensor) -> MetaTensor:
        """Returns the coarse probability of atrium `(1, h, w, d)` on the CPU, with its affine."""
        coarse = self.coarse(image)
        network = self.locator.to(self.device).eval()
        logits = network(coarse.as_tensor()[None].to(self.device))
        return MetaTensor(logits[0].float().sigmoid().cpu(), affine=coarse.affine)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its images cropped."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            probability = self.probability(image)
            box = find_box(probability[0].as_tensor(), threshold=self.threshold)
            if box is None:
                name = image.meta.get("filename_or_obj", "scan")
                if self.required:
                    raise InputError([(str(d.get("case", "")), str(name), "the locator finds no left atrium in it")])
                logger.warning("%s: no left atrium found, the whole volume is segmented", name)
                slices = [slice(0, size) for size in image.shape[1:]]
            else:
                grid = {"affine": image.affine, "patch_size": self.patch_size, "shape": image.shape[1:]}
                start = patch_start(box, probability.affine, **grid)
                slices = [slice(a, a + size) for a, size in zip(start, self.patch_size, strict=True)]
            d[key] = self.crop(image, slices=slices)
            d[key].meta["atrium_found"] = box is not None
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the images padded back to their place."""
        return {**data, **{key: self.crop.inverse(data[key]) for key in self.key_iterator(dict(data))}}


def affine_reach(
    patch_size: Sequence[int], *, rotate: Sequence[float], scale: Sequence[float], shift: Sequence[float]
) -> list[int]:
    """How far from the centre `RandAffined` can look for a patch, in voxels per axis: an upper bound.

    It takes a voxel at `v` from the centre to `R (S v + t)`. With the largest scale and shift, and with |cos| <= 1 and
    |sin| <= sin of the largest angle in the three rotations of `R`, every entry has its largest absolute value.

    Args:
        patch_size: `spatial_size`, in voxels.
        rotate: `rotate_range`, largest angle about each axis in radians, at most pi / 2.
        scale: `scale_range`, largest difference of the factors from 1.
        shift: `translate_range`, in voxels.
    """
    reach = (np.asarray(patch_size) - 1) / 2 * (1 + np.asarray(scale)) + np.asarray(shift)
    for axis in (2, 1, 0):
        turn = np.full((3, 3), math.sin(rotate[axis]))
        turn[axis] = turn[:, axis] = 0
        np.fill_diagonal(turn, 1)
        reach = turn @ reach
    return [math.ceil(voxels) for voxels in reach]


class CropAroundd(MapTransform):
    """Crops volumes to what lies within reach of the centre of a mask, which becomes the centre of the crop.

    Where the scan ends on one side and goes on at the other, images are continued with their border and masks with 0.

    Args:
        keys: volumes `(C, H, W, D)`.
        source_key: that one of them which is the mask.
        reach: voxels on each side of the centre, per axis; what lies further away is of no use.
    """

    def __init__(self, keys: KeysCollection, *, source_key: str, reach: Sequence[int]) -> None:
        super().__init__(keys)
        self.source_key = source_key
        self.reach = list(reach)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its volumes cropped."""
        mask = data[self.source_key]
        start, stop = (np.asarray(corner) for corner in generate_spatial_bounding_box(mask))
        there = np.maximum(start, np.asarray(mask.shape[1:]) - stop)
        margin = np.clip(np.asarray(self.reach) - (stop - start) // 2, 0, there).tolist()
        mode = ["constant" if key == self.source_key else "edge" for key in self.keys]
        crop = CropForegroundd(self.keys, self.source_key, margin=margin, allow_smaller=False, mode=mode)
        return dict(crop(data))


def level_set(mask: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance to the boundary of `mask` in voxels, float32, negative inside.

    Outside it is the distance to the nearest foreground voxel, inside minus the distance to the nearest background
    voxel plus one, so that the foreground's border is 0 and its outer neighbours are 1. Zero everywhere when the mask
    is empty or full (Kervadec et al., MIDL 2019).

    Args:
        mask: `(H, W, D)`, non-zero is foreground.
    """
    inside = mask.astype(bool)
    phi = np.zeros(inside.shape, np.float32)
    if not inside.any() or inside.all():
        return phi
    phi += _distance(~inside)
    (tight,) = ndimage.find_objects(inside.astype(np.uint8))
    box = tuple(slice(max(0, extent.start - 1), extent.stop + 1) for extent in tight)
    phi[box] -= np.maximum(_distance(inside[box]) - 1, 0)
    return phi


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance of every voxel of `mask` to the nearest one outside it, float32; a third of scipy's own arithmetic."""
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    squared = np.zeros(mask.shape, np.int32)
    for axis, index in enumerate(nearest):
        index -= np.arange(mask.shape[axis], dtype=np.int32).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        index *= index
        squared += index
    return np.sqrt(squared, dtype=np.float32)


class LevelSetd(MapTransform):
    """Adds the level set of a mask, computed once when the data set is cached.

    Args:
        keys: masks `(1, H, W, D)`.
        output_key: entry that receives the level set, `(1, H, W, D)`.
        dtype: `torch.int16` truncates toward zero as the reference does, a floating type keeps fractions.
    """

    def __init__(
        self, keys: KeysCollection, *, output_key: str = "level_set", dtype: torch.dtype = torch.int16
    ) -> None:
        super().__init__(keys)
        self.output_key = output_key
        self.dtype = dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the level set added."""
        d = dict(data)
        for key in self.key_iterator(d):
            phi = torch.from_numpy(level_set(d[key][0].numpy()))[None]
            d[self.output_key] = convert_to_dst_type(phi, d[key], dtype=self.dtype)[0]
        return d
