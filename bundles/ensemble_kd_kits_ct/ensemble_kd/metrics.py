"""Scores of label maps in mm, and the tables of them that an evaluation writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray
from scipy import ndimage

from .shared.evaluation import Row
from .shared.files import write_table
from .shared.tables import ScoreTable
from .shared.validation import InputError

__all__ = ["KITS_STRUCTURES", "CaseScores", "published_scores", "scores"]

Structures = Mapping[str, Sequence[int]]
Mask = NDArray[np.bool_]

# Kidney and tumour as the labels have them, and the kidney with its tumour, which the KiTS19 challenge calls kidney.
KITS_STRUCTURES: Structures = {"kidney": [1], "tumour": [2], "kidney_and_tumour": [1, 2]}
PUBLISHED = ("dice", "assd", "hd", "hd95")


def scores(
    prediction: torch.Tensor,
    label: torch.Tensor,
    *,
    spacing: Sequence[float],
    structures: Structures = KITS_STRUCTURES,
) -> dict[str, float]:
    """Scores of one label map against another, structure by structure, as MONAI measures.

    HD95 is the larger of both directions' 95th percentiles of surface distances, ASD the mean over the points of both
    surfaces, whose voxels have one of 6 neighbours outside the mask or the volume.

    Args:
        prediction: `(H, W, D)`.
        label: `(H, W, D)`.
        spacing: size of a voxel in mm.
        structures: names, and the values of the label maps that make up each.

    Returns:
        `dice_kidney`, `hd95_kidney` and `asd_kidney`, the latter two in mm, and so on for each structure. In neither
        map: 1, NaN, NaN; in one of them only: 0, infinite, infinite.

    Raises:
        ValueError: when the maps differ in shape.
    """
    sizes = [float(size) for size in spacing]
    result: dict[str, float] = {}
    for name, found, true in _masks(prediction, label, structures):
        pair = torch.from_numpy(found)[None, None], torch.from_numpy(true)[None, None]
        result[f"dice_{name}"] = float(compute_dice(*pair, include_background=True, ignore_empty=False))
        distances = [math.inf if found.any() or true.any() else math.nan] * 2
        if found.any() and true.any():
            hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=sizes)
            asd = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=sizes)
            distances = [float(hd95), float(asd)]
        result[f"hd95_{name}"], result[f"asd_{name}"] = distances
    return result


def published_scores(
    prediction: torch.Tensor,
    label: torch.Tensor,
    *,
    spacing: Sequence[float],
    structures: Structures = KITS_STRUCTURES,
    connectivity: int = 3,
) -> dict[str, float]:
    """Scores as the reference implementation takes them, for tables beside the paper's.

    Surface voxels are those with a neighbour outside the mask; what lies outside the volume is outside the mask. From
    each surface voxel of one mask the distance to the nearest one of the other is taken, in both directions. ASSD is
    the mean over all these distances, HD the larger of the two maxima, and HD95 the larger of the two 95th percentiles
    (interpolated linearly).

    Args:
        prediction: see `scores`.
        label: likewise.
        spacing: likewise.
        structures: likewise.
        connectivity: whose neighbours count: 3 those of 26, as in the reference implementation; 1 those of 6, as in
            MONAI's surface metrics.

    Returns:
        `dice_kidney`, `assd_kidney`, `hd_kidney` and `hd95_kidney`, the latter three in mm, and so on for each
        structure. All four are NaN when neither map has the structure. When one has it, the Dice is 0 and the distances
        are NaN.

    Raises:
        ValueError: when the maps differ in shape.
    """
    neighbours = ndimage.generate_binary_structure(label.ndim, connectivity)
    result: dict[str, float] = {}
    for name, found, true in _masks(prediction, label, structures):
        compared = _compare(found, true, spacing=spacing, neighbours=neighbours)
        result |= {f"{score}_{name}": value for score, value in zip(PUBLISHED, compared, strict=True)}
    return result


def _masks(prediction: torch.Tensor, label: torch.Tensor, structures: Structures) -> Iterator[tuple[str, Mask, Mask]]:
    """Yields name and both masks of every structure."""
    if prediction.shape != label.shape:
        raise ValueError(f"the prediction is {tuple(prediction.shape)}, the label {tuple(label.shape)}")
    maps = [torch.as_tensor(volume).detach().cpu() for volume in (prediction, label)]
    for name, values in structures.items():
        found, true = (np.asarray(torch.isin(volume, torch.tensor(values, dtype=volume.dtype))) for volume in maps)
        yield name, found, true


def _compare(found: Mask, true: Mask, *, spacing: Sequence[float], neighbours: Mask) -> tuple[float, ...]:
    """Returns the scores of two masks in the order of `PUBLISHED`."""
    boxes = ndimage.find_objects((found | true).view(np.uint8))
    if not boxes:
        return (math.nan,) * len(PUBLISHED)
    found, true = found[boxes[0]], true[boxes[0]]
    dice = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
    if not (found.any() and true.any()):
        return dice, math.nan, math.nan, math.nan
    surfaces = [mask & ~ndimage.binary_erosion(mask, neighbours) for mask in (found, true)]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[surface]
        for surface, other in (surfaces, reversed(surfaces))
    ]
    return (
        float(dice),
        float(np.concatenate(distances).mean()),
        float(max(distance.max() for distance in distances)),
        float(max(np.percentile(distance, 95) for distance in distances)),
    )


class CaseScores(ScoreTable):
    """`ScoreTable` of the `scores` of every case; its column `dice` is the mean over the structures.

    Args:
        path: CSV of the cases, written when the run ends.
        structures: see `scores`.
        published: whether `<name>_published.csv` shall have the `published_scores` too.

    Raises:
        InputError: when there is no structure, or one without values.
    """

    def __init__(self, path: str, *, structures: Structures = KITS_STRUCTURES, published: bool = False) -> None:
        if not structures or not all(structures.values()):
            raise InputError([("", "structures", f"must be names with label values, got {dict(structures)}")])
        super().__init__(path)
        self.structures = {name: list(values) for name, values in structures.items()}
        self.published = published

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns the scores of one case; `pred` and `label` are `(1, H, W, D)` and lie on one grid."""
        found = scores(*self._volumes(item), spacing=item["label"].pixdim.tolist(), structures=self.structures)
        mean = float(np.mean([found[f"dice_{name}"] for name in self.structures]))
        return {"case": item["case"], "dice": mean, **found}

    def holds(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Returns whether the reference holds each structure; under "" the published scores where they are wanted."""
        volumes, spacing = self._volumes(item), item["label"].pixdim.tolist()
        present: dict[str, Any] = {name: bool(true.any()) for name, _, true in _masks(*volumes, self.structures)}
        if self.published:
            present[""] = published_scores(*volumes, spacing=spacing, structures=self.structures)
        return present

    @staticmethod
    def _volumes(item: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return item["pred"][0], item["label"][0]

    def write(self, engine: Engine) -> None:
        """Writes the tables."""
        super().write(engine)
        if self.published:
            rows = [{"case": row["case"], **held[""]} for row, held in zip(self.rows, self.held, strict=True)]
            write_table(self.path.with_name(f"{self.path.stem}_published.csv"), rows)
