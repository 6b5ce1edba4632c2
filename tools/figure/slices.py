"""Slices of phantoms for figures."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.data.phantoms import Volume

__all__ = ["Slice", "phantom_slice"]


class Slice(NamedTuple):
    """Grey values 0 to 1 and labels, both `(rows, columns)` of square pixels."""

    scan: NDArray[np.float64]
    labels: NDArray[np.int16]


def phantom_slice(
    bundle: str,
    *,
    scan: str,
    labels: str,
    patient: int = 0,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    window: Sequence[float] = (1, 99.5),
    reach: float | None = None,
    domain: str | None = None,
) -> Slice:
    """Returns the axial slice of a phantom in which most voxels are labelled.

    Args:
        bundle: the bundle whose phantom is drawn.
        scan: what the name of the scan's file ends with.
        labels: what the name of the label map's file ends with.
        patient: number of the phantom.
        shape: voxels along x, y, z; the phantoms' own by default.
        spacing: voxel size in mm.
        window: percentiles that become black and white.
        reach: half the width in mm of a square around the labels to cut out; by default the whole slice.
        domain: of phantoms that have several.

    Raises:
        ValueError: the phantom has no such file.
    """
    recipe = importlib.import_module(f"tools.per_bundle.{bundle}.phantoms").case
    options = {"shape": shape, "spacing": spacing, "domain": domain}
    given = {name: value for name, value in options.items() if value is not None}
    files = recipe(np.random.default_rng([3, patient]), **given)
    image, mask = _ending(files, scan), _ending(files, labels)
    z = int(np.count_nonzero(mask.voxels, axis=(0, 1)).argmax())
    grey, classes = image.voxels[..., z].T.astype(np.float64), mask.voxels[..., z].T.astype(np.int16)
    low, high = np.percentile(grey, window)
    grey = np.clip((grey - low) / (high - low), 0, 1)
    box = _square(classes, None if reach is None else round(reach / image.spacing[0]))
    return Slice(grey[box], classes[box])


def _ending(files: dict[str, Volume | str], ending: str) -> Volume:
    found = [content for name, content in files.items() if name.endswith(ending) and isinstance(content, Volume)]
    if not found:
        raise ValueError(f"no file of the phantom ends with {ending!r}, there are: {', '.join(files)}")
    return found[0]


def _square(labels: NDArray[np.int16], reach: int | None) -> tuple[slice, slice]:
    """The part to show: a square around the labels, or the largest one around the centre."""
    rows, columns = labels.shape
    if reach is None:
        half, middle = min(rows, columns) // 2, (rows // 2, columns // 2)
    else:
        half = min(reach, rows // 2, columns // 2)
        middle = tuple((int(used.min()) + int(used.max()) + 1) // 2 for used in np.nonzero(labels))  # type: ignore[assignment]
    starts = [min(max(m - half, 0), size - 2 * half) for m, size in zip(middle, labels.shape, strict=True)]
    return slice(starts[0], starts[0] + 2 * half), slice(starts[1], starts[1] + 2 * half)
