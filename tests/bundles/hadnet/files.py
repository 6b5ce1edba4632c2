"""Small BraTS cases on disk, named as in any year of the challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

SEQUENCES = ("flair", "t1ce", "t1", "t2")
SHAPE = (12, 14, 10)
YEARS = {
    2019: {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2", "label": "_seg"},
    2023: {"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w", "label": "-seg"},
}


def scan(seed: int = 0) -> NDArray[Any]:
    """A sequence `(x, y, z)`: noise in a brain of 8 x 10 x 6 voxels, 0 around it."""
    volume = np.zeros(SHAPE, np.int16)
    volume[2:10, 2:12, 2:8] = np.random.default_rng(seed).integers(100, 900, (8, 10, 6))
    return volume


def label(*values: int) -> NDArray[Any]:
    """A label map with one voxel of each value."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[3, 3, 3 : 3 + len(values)] = values
    return volume


def write(path: Path, volume: NDArray[Any], affine: Sequence[float] = (-1.0, -1.0, 1.0)) -> Path:
    """Writes a volume with the affine of BraTS; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*affine, 1.0])), path)
    return path


def write_case(
    folder: Path, *, year: int = 2019, volumes: Mapping[str, NDArray[Any]] | None = None, named: bool = True
) -> Path:
    """Writes the four sequences and the label of a case; returns its folder."""
    content = {name: scan(seed) for seed, name in enumerate(SEQUENCES)} | {"label": label(1, 2, 4), **(volumes or {})}
    for name, volume in content.items():
        ending = YEARS[year][name]
        write(folder / f"{folder.name if named else ''}{ending if named else ending[1:]}.nii.gz", volume)
    return folder
