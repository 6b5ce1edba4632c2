"""What the published settings need and MONAI lacks: the locator's grid, motion in whole steps, pooled intensities.

The reference implementation works on `(z, y, x)` arrays, the transposes of MONAI's volumes. Random draws come in its
order from NumPy's legacy generator, so that equal seeds give equal samples. Its noise is MONAI's `RandGaussianNoised`
with `std=1, sample_std=True`, its flip `Flipd(spatial_axis=1)`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type, optional_import
from tqdm import tqdm

from .locator import find_box, patch_size_for
from .shared.files import write_text
from .shared.validation import InputError

__all__ = ["Downscale", "RandRotateInPlaned", "RandTranslated"]
__all__ += ["measure_intensity", "read_intensity", "suggest_patch_size"]

logger = logging.getLogger(__name__)
ndimage, _ = optional_import("scipy.ndimage")

STEP = (4, 4, 2)  # voxels of the scan per voxel of the locator's grid, along x, y, z
SHIFTS = ((0, 5, 0), (0, 0, 5), (0, -5, 0), (0, 0, -5), (0, 5, 5), (0, -5, -5), (0, 5, -5), (0, -5, 5))  # along z, y, x


def _on_reference_axes(function: Callable[[np.ndarray], np.ndarray], volume: torch.Tensor) -> torch.Tensor:
    """Applies `function` to the `(z, y, x)` array of `volume`, `(1, x, y, z)`."""
    result = np.ascontiguousarray(function(volume[0].numpy().T).T)
    return convert_to_dst_type(result[None], volume)[0]


class Downscale(Transform):
    """Brings a padded scan to the locator's grid: every fourth voxel along x and y, every second along z.

    Before that a Gaussian smooths the 8-bit scan, truncated to integers after each axis, z first. The affine says which
    voxels were taken, 4i + 2 (2i + 1 along z); the reference takes them for 4i (2i), two voxels off.

    Args:
        canvas: size in voxels that every scan is padded to, multiples of 64, 64 and 32.
        smooth: whether to smooth; label maps are not.
    """

    def __init__(self, canvas: Sequence[int], *, smooth: bool = True) -> None:
        self.canvas = tuple(canvas)
        self.smooth = smooth

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Returns the coarse volume of `image`, `(1, x, y, z)`, as float32.

        Raises:
            InputError: when `image` is larger than the canvas, or not 8-bit where it has to be smoothed.
        """
        file = str(image.meta.get("filename_or_obj", ""))
        if image.shape[1:] != self.canvas:
            raise InputError([("", file, f"is larger than the canvas: {tuple(image.shape[1:])} not {self.canvas}")])
        volume = image[0].cpu().numpy().T
        if self.smooth:
            if volume.min() < 0 or volume.max() > 255:
                raise InputError([("", file, "must hold values from 0 to 255, as the published locator takes them")])
            volume = ndimage.gaussian_filter(volume.astype(np.uint8), (0.5, 1.5, 1.5), mode="mirror")
        coarse = np.ascontiguousarray(volume[1::2, 2::4, 2::4].T, dtype=np.float32)
        scale = torch.diag(torch.tensor([*STEP, 1.0], dtype=torch.float64))
        scale[:3, 3] = torch.tensor(STEP) // 2
        return MetaTensor(torch.from_numpy(coarse)[None], affine=image.affine.double() @ scale)


class _RandMoved(RandomizableTransform, MapTransform):
    """Moves all its volumes alike.

    Args:
        keys: volumes `(1, x, y, z)` on the CPU, all of one shape.
    """

    def __init__(self, keys: KeysCollection) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)

    def move(self, array: np.ndarray) -> np.ndarray:
        """Returns the `(z, y, x)` array moved as drawn last, each voxel from the nearest one."""
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its volumes moved."""
        d = dict(data)
        self.randomize(d[self.first_key(d)])
        for key in self.key_iterator(d):
            d[key] = _on_reference_axes(self.move, d[key])
        return d


class RandRotateInPlaned(_RandMoved):
    """Rotates in the axial plane by a whole number of degrees from -3 to 2, zeros around."""

    def randomize(self, data: torch.Tensor) -> None:
        """Draws the angle."""
        super().randomize(data)
        self.degrees = int(self.R.randint(-3, 3))

    def move(self, array: np.ndarray) -> np.ndarray:
        """Returns the `(z, y, x)` array rotated."""
        return np.asarray(ndimage.rotate(array, self.degrees, axes=(2, 1), reshape=False, order=0))


class RandTranslated(_RandMoved):
    """Shifts by five voxels along x, y or both, zeros behind."""

    def randomize(self, data: torch.Tensor) -> None:
        """Draws the shift."""
        super().randomize(data)
        self.shift = SHIFTS[self.R.randint(len(SHIFTS))]

    def move(self, array: np.ndarray) -> np.ndarray:
        """Returns the `(z, y, x)` array shifted."""
        return np.asarray(ndimage.shift(array, self.shift, order=0))


def measure_intensity(patches: Iterable[Mapping[str, Any]], path: str | Path) -> dict[str, float]:
    """Writes mean and standard deviation of all voxels of all training patches to a JSON file, and returns them."""
    count, total, squares = 0, 0.0, 0.0
    for item in tqdm(patches, "Measuring intensity", unit="case"):
        voxels = item["image"].double()
        count, total, squares = count + voxels.numel(), total + float(voxels.sum()), squares + float((voxels**2).sum())
    mean = total / count
    intensity = {"mean": mean, "std": math.sqrt(squares / count - mean**2)}
    write_text(path, json.dumps(intensity))
    logger.info("Mean %.4f and standard deviation %.4f saved to %s", *intensity.values(), path)
    return intensity


def read_intensity(path: str | Path) -> dict[str, float]:
    """Returns `{"mean", "std"}` of `measure_intensity`.

    Raises:
        InputError: when there is no such file.
    """
    if not Path(path).is_file():
        raise InputError([("", str(path), "does not exist: run `statistics` with the configs of the training first")])
    intensity: dict[str, float] = json.loads(Path(path).read_text())
    return intensity


def suggest_patch_size(cases: Iterable[Mapping[str, Any]], *, limit: Sequence[int], buffer: int = 30) -> list[int]:
    """Returns and logs the patch size that the published rule finds for labels on the locator's grid.

    Args:
        cases: each with `case` and `label` `(1, x, y, z)`, of `Downscale`.
        limit: largest size per axis in voxels of the scans.
        buffer: see `patch_size_for`.

    Raises:
        InputError: when a label has no two planes with ten voxels along an axis.
    """
    boxes = []
    for item in cases:
        box = find_box(item["label"][0], threshold=None)
        if box is None:
            raise InputError([(item["case"], "label", "is too small for the locator's grid")])
        boxes.append(box)
    size = patch_size_for(boxes, scale=STEP, buffer=buffer, limit=limit)
    logger.info("The patch size is %s voxels", size)
    return size
