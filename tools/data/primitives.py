"""Forms that phantoms are drawn with: signed distances in mm, smooth random fields.

Coordinates `points` are three arrays in mm that together have the shape `(X, Y, Z)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

Field = NDArray[np.floating]
Points = tuple[Field, Field, Field]
Vector = tuple[float, float, float]

TALL = 1e3


class Ellipsoid(NamedTuple):
    """An ellipsoid by centre and half axes in mm; a half axis of `TALL` makes it a cylinder."""

    centre: Vector
    radii: Vector

    def distance(self, points: Points) -> Field:
        """Signed distance in mm, negative inside; first order, exact on the surface."""
        offsets = [p - c for p, c in zip(points, self.centre, strict=True)]
        inner = np.sqrt(sum((o / r) ** 2 for o, r in zip(offsets, self.radii, strict=True)))
        slope = np.sqrt(sum((o / r**2) ** 2 for o, r in zip(offsets, self.radii, strict=True)))
        return np.asarray(inner * (inner - 1) / np.maximum(slope, 1e-6), dtype=np.float32)


class Tube(NamedTuple):
    """A round-ended tube from `start` to `end`, its radius changing linearly (mm)."""

    start: Vector
    end: Vector
    radii: tuple[float, float]

    def distance(self, points: Points) -> Field:
        """Signed distance in mm to the surface, negative inside."""
        axis = np.subtract(self.end, self.start).astype(np.float32)
        offsets = [p - s for p, s in zip(points, self.start, strict=True)]
        along = np.clip(sum(o * a for o, a in zip(offsets, axis, strict=True)) / np.dot(axis, axis), 0, 1)
        reach = np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offsets, axis, strict=True)))
        return np.asarray(reach - (self.radii[0] + along * (self.radii[1] - self.radii[0])), dtype=np.float32)

    def beyond(self, length: float) -> Tube:
        """The stretch of `length` mm that continues this tube and tapers to half its end radius."""
        direction = np.subtract(self.end, self.start)
        x, y, z = self.end + direction * length / np.linalg.norm(direction)
        return Tube(self.end, (float(x), float(y), float(z)), (self.radii[1], self.radii[1] / 2))


def coordinates(shape: Sequence[int], *, spacing: Sequence[float]) -> Points:
    """Voxel centres in mm from the centre of a volume of `shape`, as arrays that broadcast to it."""
    axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x, y, z


def smooth_field(rng: np.random.Generator, shape: Sequence[int], *, extent: Sequence[float], step: float) -> Field:
    """Cubic-spline surface `(X, Y, Z)` through unit normal values every `step` mm, the same at any resolution."""
    nodes = [max(2, round(e / step) + 1) for e in extent]
    bases = [
        zoom(np.eye(k, dtype=np.float32), (n / k, 1), order=3, mode="nearest", grid_mode=True)
        for k, n in zip(nodes, shape, strict=True)
    ]
    values = rng.standard_normal(nodes, dtype=np.float32)
    return np.asarray(np.einsum("ai,bj,ck,ijk->abc", *bases, values, optimize=True), dtype=np.float32)


def blend(first: Field, second: Field, *, radius: float) -> Field:
    """Union of two signed distances with a fillet of about `radius` mm."""
    overlap = np.maximum(radius - np.abs(first - second), 0)
    return np.asarray(np.minimum(first, second) - overlap**2 / (4 * radius), dtype=np.float32)
