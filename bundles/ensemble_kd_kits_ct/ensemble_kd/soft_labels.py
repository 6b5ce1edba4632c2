"""Soft labels on disk: one 4D NIfTI for each case, a channel for each class, on the grid that networks see."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from .shared.geometry import apart, same_grid
from .shared.validation import InputError
from .shared.volumes import VolumeError, read_volume
from .shared.writing import write_volume
from .windows import SUM_TOLERANCE

__all__ = ["LoadSoftLabelsd", "SaveMapsd", "grid_of", "problem_of_soft_labels"]

STEPS = {"uint8": 255, "uint16": 65535}  # what stands for 1; NIfTI has no half-precision floats

Case = Mapping[str, Any]
Transform = Callable[[dict[str, Any]], Mapping[Hashable, Any]]


class SaveMapsd(MapTransform):
    """Saves maps `(C, H, W, D)` on their own grid; a file is there complete or not at all.

    The axes of a file are H, W, D and, with more than one channel, C. Label maps are stored as they are; probabilities
    that are stored as whole numbers, with the scale factor that makes them probabilities again.

    Args:
        keys: the maps.
        file: from a case's name and a kind to the path, for example `annotation.Annotation.file`.
        kinds: what they are in the files' names, by default what their keys are.
        on_scan: whether the maps are on the scan's own grid.
        dtype: of maps that are no label maps: `float32`, `uint16` (half its size, exact to 8e-6) or `uint8` (a quarter,
            to 2e-3); for each key or for all.

    Raises:
        InputError: when the dtype is another.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        file: Callable[[str, str], Path],
        kinds: KeysCollection | None = None,
        on_scan: bool = False,
        dtype: str | Sequence[str] = "float32",
    ) -> None:
        super().__init__(keys)
        self.file = file
        self.on_scan = on_scan
        self.kinds = [str(kind) for kind in ensure_tuple(self.keys if kinds is None else kinds)]
        self.dtypes = [dtype] * len(self.keys) if isinstance(dtype, str) else list(dtype)
        if unknown := sorted(set(self.dtypes) - {"float32", *STEPS}):
            raise InputError([("", "soft_dtype", f"must be float32, uint16 or uint8, got {unknown[0]}")])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` as it is.

        Raises:
            OSError: when a file cannot be written; nothing of it is left.
        """
        item = dict(data)
        for key, kind, dtype in self.key_iterator(item, self.kinds, self.dtypes):
            volume: MetaTensor = item[key]
            values = volume.as_tensor().movedim(0, -1).cpu().numpy()
            affine = volume.meta["original_affine"] if self.on_scan else volume.affine
            step = STEPS.get(dtype) if values.dtype.kind == "f" else None
            write_volume(
                self.file(item["case"], kind),
                values if step is None else np.rint(values * step).clip(0, step).astype(dtype),  # no wrap around
                affine=torch.as_tensor(affine).double().cpu().numpy(),
                like=volume.meta["filename_or_obj"] if self.on_scan else None,
                slope=None if step is None else 1 / step,
            )
        return item


class LoadSoftLabelsd(MapTransform):
    """Loads the soft labels of a case as `(C, H, W, D)`, float32, on the grid of its `image`.

    Args:
        keys: paths of soft labels; a case without is passed over.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the loaded maps.

        Raises:
            InputError: when the file is of another grid.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item["image"]
            file = read_volume(item[key])
            grid = tuple(image.shape[1:]), image.affine
            if problem := _problem_of_grid(file.shape[:3], file.affine, grid=grid):
                raise InputError([(str(item.get("case", "")), str(item[key]), problem)])
            values = torch.from_numpy(np.asarray(file.dataobj, dtype=np.float32)).movedim(-1, 0).contiguous()
            item[key] = MetaTensor(values, affine=image.affine)
        return item


def grid_of(
    transform: Transform, *, shape: Sequence[int], affine: torch.Tensor
) -> tuple[tuple[int, ...], torch.Tensor]:
    """Returns shape and affine that a chain of spatial transforms gives an image `(H, W, D)`, without its voxels.

    They are those of the label map, which is on the image's grid and takes less time: it is not smoothed.

    Args:
        transform: dictionary transform of `image` and `label`.
        shape: size of the image.
        affine: `(4, 4)` of the image.
    """
    voxel, empty = (torch.zeros(1).expand(1, *size) for size in ((1, 1, 1), shape))
    volumes = {"image": MetaTensor(voxel, affine=affine), "label": MetaTensor(empty, affine=affine)}
    label = transform(volumes)["label"]
    return tuple(label.shape[1:]), label.affine


def problem_of_soft_labels(path: str | Path, *, classes: int, grid: tuple[Sequence[int], torch.Tensor]) -> str | None:
    """Returns the rule that a file of soft labels breaks, or `None`.

    Args:
        path: the file.
        classes: how many channels it must have.
        grid: shape and affine that it must have.
    """
    try:
        file = read_volume(path, dimensions=[4])
    except VolumeError as error:
        return f"soft labels {error}"
    values = np.asarray(file.dataobj, dtype=np.float32)
    if values.shape[-1] != classes:
        return f"soft labels must have {classes} channels on their fourth axis, their shape is {values.shape}"
    if problem := _problem_of_grid(values.shape[:3], file.affine, grid=grid):
        return problem
    lowest, highest, sums = float(values.min()), float(values.max()), values.sum(-1)
    if not (lowest >= 0 and highest <= 1 + SUM_TOLERANCE):
        return f"soft labels must lie between 0 and 1, found {lowest:.3g} to {highest:.3g}"
    worst = float(sums.flat[np.abs(sums - 1).argmax()])
    return None if abs(worst - 1) <= SUM_TOLERANCE else f"soft labels must sum to 1 in every voxel, found {worst:.3g}"


def _problem_of_grid(
    shape: Sequence[int], affine: np.ndarray, *, grid: tuple[Sequence[int], torch.Tensor]
) -> str | None:
    if tuple(shape) != tuple(grid[0]):
        return f"soft labels are of another grid: shape {tuple(shape)} instead of {tuple(grid[0])}"
    wanted = grid[1].cpu().double().numpy()
    off = f"{apart(wanted, affine, shape=shape):.3g}"
    return (
        None
        if same_grid(wanted, affine, shape=shape)
        else f"soft labels are of another grid: affine differs by up to {off} mm"
    )
