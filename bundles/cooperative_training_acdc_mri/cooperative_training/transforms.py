"""Transforms that MONAI lacks: brightness with contrast, one warp of image and label, scaling of raw volumes only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, ScaleIntensityRangePercentilesd
from monai.transforms.utils import create_rotate, create_scale, create_translate
from monai.utils import convert_to_tensor, optional_import
from torch.nn.functional import grid_sample, max_pool2d

__all__ = [
    "RandBrightnessContrastd",
    "RandWarpSliced",
    "ScaleRawd",
    "affine_matrix",
    "smooth_field",
    "source_coordinates",
    "warp_image",
    "warp_label",
]

ndimage, _ = optional_import("scipy.ndimage")

Range = Sequence[float]

SPLINE_REACH = 16  # pixels beyond which float32 does not see one in a cubic spline


class ScaleRawd(ScaleIntensityRangePercentilesd):
    """Scales by percentiles as MONAI's does, but leaves volumes alone that are `scaled`, as corrupted test sets are."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its images scaled unless it says `scaled`."""
        return dict(data) if data.get("scaled") else super().__call__(data)


class RandBrightnessContrastd(RandomizableTransform, MapTransform):
    """Scales and shifts intensities together, then clamps them to the range the slice had before.

    Args:
        keys: images `(C, H, W)`.
        prob: probability of a change.
        contrast: range of the factor.
        brightness: range of the summand.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        prob: float = 0.5,
        contrast: Range = (0.8, 1.2),
        brightness: Range = (-0.1, 0.1),
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.contrast = contrast
        self.brightness = brightness

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with its images changed, all by the same factor and summand."""
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            factor, summand = self.R.uniform(*self.contrast), self.R.uniform(*self.brightness)
            for key in self.key_iterator(d):
                image = convert_to_tensor(d[key], track_meta=False)
                d[key] = (image * factor + summand).clamp(image.min(), image.max())
        return d


def affine_matrix(angle: float, shift: Range = (0, 0), *, zoom: Range = (1, 1)) -> np.ndarray:
    """Returns rotation · translation · zoom `(3, 3)`, which maps centred output coordinates to centred source ones.

    Args:
        angle: in radians, from the first axis to the second.
        shift: in pixels, per axis.
        zoom: factors per axis, less than 1 magnifies.
    """
    matrix: np.ndarray = create_rotate(2, angle) @ create_translate(2, shift) @ create_scale(2, zoom)
    return matrix


def smooth_field(noise: np.ndarray, *, sigma: float) -> np.ndarray:
    """Filters noise `(..., H, W)` with a Gaussian of `sigma` pixels, cut at 4 sigma, zero outside the slice.

    The filter is separable: one matrix per axis gives the same as `scipy.ndimage.gaussian_filter(mode="constant")`.
    """
    # Torch multiplies on one thread in a loader's workers, where NumPy would start one per core in each of them.
    down, across = (torch.from_numpy(_gaussian(size, sigma)) for size in noise.shape[-2:])
    field: np.ndarray = (down @ torch.from_numpy(noise).float() @ across).numpy()
    return field


def _gaussian(size: int, sigma: float) -> np.ndarray:
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    weights = np.exp(-0.5 * (distance / sigma) ** 2) / kernel.sum()
    return np.where(distance <= radius, weights, 0).astype(np.float32)


def source_coordinates(
    matrix: np.ndarray, displacement: np.ndarray | None = None, *, shape: Sequence[int], size: Sequence[int]
) -> np.ndarray:
    """Where in a slice the central pixels of the output come from: `(2, h, w)`, in pixels.

    Args:
        matrix: `(3, 3)`, acts on coordinates that are zero in the middle of the slice.
        displacement: `(2, H, W)` in pixels, added before the matrix acts.
        shape: `(H, W)` of the slice.
        size: `(h, w)` of the output.

    Raises:
        ValueError: when the output is larger than the slice.
    """
    start = np.subtract(shape, size) // 2
    if min(start) < 0:
        raise ValueError(f"an output of {list(size)} pixels is larger than the slice of {list(shape)}")
    points = np.indices(size, dtype=np.float64) + start[:, None, None]
    if displacement is not None:
        (top, left), (height, width) = start, size
        points += displacement[:, top : top + height, left : left + width]
    middle = (np.reshape(shape, (2, 1, 1)) - 1) / 2
    return np.einsum("ij,jhw->ihw", matrix[:2, :2], points - middle) + matrix[:2, 2, None, None] + middle


def warp_image(image: torch.Tensor, source: np.ndarray, *, spline: bool = False) -> torch.Tensor:
    """Reads an image `(1, H, W)` at source coordinates `(2, h, w)` in pixels, clamped to the image.

    Returns:
        `(1, h, w)`, interpolated linearly or by a cubic spline.
    """
    if not spline:
        return _grid_sample(image, source, mode="bilinear")
    return torch.from_numpy(_spline(image[0].numpy(), source))[None]


def warp_label(label: torch.Tensor, source: np.ndarray, *, spline: bool = False) -> torch.Tensor:
    """Reads a label map `(1, H, W)` at source coordinates `(2, h, w)` in pixels, clamped to the map.

    Returns:
        `(1, h, w)`: the nearest label, or the last class whose mask, interpolated by a cubic spline, reaches 0.5.
    """
    if not spline:
        return _grid_sample(label.float(), source, mode="nearest").to(label.dtype)
    # Two pixels away from every label no mask's spline comes near 0.5.
    near = warp_label(max_pool2d((label != 0).float(), 5, stride=1, padding=2), source)[0] > 0
    points = source[:, near.numpy()]
    found = torch.zeros(points.shape[1], dtype=label.dtype)
    for value in torch.unique(label[label != 0]).tolist():
        mask = (label[0] == value).numpy().astype(np.float32)
        found[torch.from_numpy(_spline(mask, points) >= 0.5)] = value
    return torch.zeros(1, *source.shape[1:], dtype=label.dtype).masked_scatter(near, found)


def _grid_sample(image: torch.Tensor, source: np.ndarray, *, mode: str) -> torch.Tensor:
    last = torch.tensor(image.shape[:0:-1]) - 1
    grid = torch.from_numpy(source[::-1].copy()).float().movedim(0, -1) * (2 / last) - 1
    return grid_sample(image[None], grid[None], mode=mode, padding_mode="border", align_corners=True)[0]


def _spline(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    inside = np.clip(source.T, 0, np.subtract(image.shape, 1)).T.reshape(2, -1)
    if not inside.size:
        return np.zeros(source.shape[1:], np.float32)
    # A pixel's weight falls by 0.27 per pixel of distance: the filter runs over what can matter.
    top, left = np.maximum(inside.min(1).astype(int) - SPLINE_REACH, 0)
    bottom, right = inside.max(1).astype(int) + SPLINE_REACH + 1
    part, points = image[top:bottom, left:right], inside - [[top], [left]]
    values: np.ndarray = ndimage.map_coordinates(part, points, order=3, mode="reflect")
    return values.reshape(source.shape[1:])


class RandWarpSliced(RandomizableTransform, MapTransform):
    """Turns, shifts, zooms and elastically deforms `image` and `label`, both `(1, H, W)`, all by one resampling.

    The source of an output pixel p is A · Q · (p + d(p)): a small affine A, a turn Q by a random multiple of 45 degrees
    and, with probability `elastic_prob`, an elastic displacement d, which is uniform noise in [-1, 1] smoothed by a
    Gaussian and multiplied. Without d the image is interpolated linearly and the label by its nearest pixel, with d
    both by cubic splines, see `warp_image` and `warp_label`.

    Args:
        spatial_size: size of the output in pixels, around the centre of the input.
        rotate_range: largest angle of A in radians, either way.
        translate_range: largest shift of A as a fraction of the size, either way, per axis.
        zoom_range: range of the zoom of A, per axis; less than 1 magnifies.
        eighth_turns: whether Q turns.
        elastic_prob: probability of d.
        sigma_range: range of the Gaussian's sigma as a fraction of H.
        alpha_range: range of the factor of d as a fraction of H.
    """

    def __init__(
        self,
        *,
        spatial_size: Sequence[int],
        rotate_range: float = np.pi / 12,
        translate_range: float = 0.1,
        zoom_range: Range = (0.8, 1.1),
        eighth_turns: bool = True,
        elastic_prob: float = 0.5,
        sigma_range: Range = (0.075, 0.15),
        alpha_range: Range = (1.5, 2.0),
    ) -> None:
        MapTransform.__init__(self, ["image", "label"])
        RandomizableTransform.__init__(self)
        self.spatial_size = tuple(spatial_size)
        self.rotate_range = rotate_range
        self.translate_range = translate_range
        self.zoom_range = zoom_range
        self.eighth_turns = eighth_turns
        self.elastic_prob = elastic_prob
        self.sigma_range = sigma_range
        self.alpha_range = alpha_range

    def draw_matrix(self, shape: Sequence[int]) -> np.ndarray:
        """Draws A · Q for a slice of `shape` pixels, `(3, 3)`."""
        angle = self.R.uniform(-self.rotate_range, self.rotate_range)
        shift = self.R.uniform(-self.translate_range, self.translate_range, 2) * shape
        matrix = affine_matrix(angle, shift, zoom=self.R.uniform(*self.zoom_range, 2))
        return matrix @ affine_matrix(self.R.randint(8) * np.pi / 4) if self.eighth_turns else matrix

    def draw_displacement(self, shape: Sequence[int]) -> np.ndarray | None:
        """Draws d for a slice of `shape` pixels, `(2, H, W)` in pixels, or nothing."""
        if self.R.random_sample() >= self.elastic_prob:
            return None
        sigma, alpha = (shape[0] * self.R.uniform(*extent) for extent in (self.sigma_range, self.alpha_range))
        return alpha * smooth_field(self.R.uniform(-1, 1, (2, *shape)), sigma=sigma)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with image and label warped."""
        d = dict(data)
        image, label = (convert_to_tensor(d[key], track_meta=False) for key in self.keys)
        shape = image.shape[1:]
        matrix, displacement = self.draw_matrix(shape), self.draw_displacement(shape)
        source = source_coordinates(matrix, displacement, shape=shape, size=self.spatial_size)
        d["image"] = warp_image(image, source, spline=displacement is not None)
        d["label"] = warp_label(label, source, spline=displacement is not None)
        return d
