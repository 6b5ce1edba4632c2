"""Scores of label maps in mm, and the tables of them that an evaluation leaves behind."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from .cases import InputError

__all__ = ["KITS_STRUCTURES", "CaseReport", "CaseScores", "scores", "summarise"]

Structures = Mapping[str, Sequence[int]]

# Kidney and tumour as the labels have them, and the kidney with its tumour, which the KiTS19 challenge calls kidney.
KITS_STRUCTURES: Structures = {"kidney": [1], "tumour": [2], "kidney_and_tumour": [1, 2]}
SCORES = ("dice", "assd", "hd", "hd95")


def scores(
    prediction: torch.Tensor,
    label: torch.Tensor,
    *,
    spacing: Sequence[float],
    structures: Structures = KITS_STRUCTURES,
    connectivity: int = 3,
) -> dict[str, float]:
    """Scores of one label map against another, structure by structure.

    The Dice is 2 |A and B| / (|A| + |B|). Surface voxels are those with a neighbour outside the mask; what lies outside
    the volume is outside the mask. From each surface voxel of one mask the distance to the nearest one of the other is
    taken, in both directions. ASSD is the mean over all these distances, HD the larger of the two maxima, and HD95 the
    larger of the two 95th percentiles (interpolated linearly).

    Args:
        prediction: `(H, W, D)`.
        label: `(H, W, D)`.
        spacing: size of a voxel in mm.
        structures: names, and the values of the label maps that make up each.
        connectivity: whose neighbours count: 3 those of 26, as in the reference implementation; 1 those of 6, as in
            MONAI's surface metrics.

    Returns:
        `dice_kidney`, `assd_kidney`, `hd_kidney` and `hd95_kidney`, the latter three in mm, and so on for each
        structure. All four are NaN when neither map has the structure. When one has it, the Dice is 0 and the distances
        are NaN.

    Raises:
        ValueError: when the maps differ in shape.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"the prediction is {tuple(prediction.shape)}, the label {tuple(label.shape)}")
    neighbours = ndimage.generate_binary_structure(label.ndim, connectivity)
    maps = [torch.as_tensor(volume).detach().cpu() for volume in (prediction, label)]
    result: dict[str, float] = {}
    for name, values in structures.items():
        masks = [np.asarray(torch.isin(volume, torch.tensor(values, dtype=volume.dtype))) for volume in maps]
        compared = _compare(*masks, spacing=spacing, neighbours=neighbours)
        result |= {f"{score}_{name}": value for score, value in zip(SCORES, compared, strict=True)}
    return result


Mask = NDArray[np.bool_]


def _compare(found: Mask, true: Mask, *, spacing: Sequence[float], neighbours: Mask) -> tuple[float, ...]:
    """Returns the scores of two masks in the order of `SCORES`."""
    boxes = ndimage.find_objects((found | true).view(np.uint8))
    if not boxes:
        return (math.nan,) * len(SCORES)
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


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summary of each score over the cases where it is finite.

    Args:
        rows: `case` and the scores of every case.

    Returns:
        Rows with `score`, `cases` (how many have a finite score), `mean`, `sd` (of the population), `median`, `worst`
        and `best`; NaN where no case has one.
    """
    summary = []
    for name in rows[0]:
        if name == "case":
            continue
        finite = np.array([row[name] for row in rows if math.isfinite(row[name])])
        line = {"score": name, "cases": len(finite)} | dict.fromkeys(
            ("mean", "sd", "median", "worst", "best"), math.nan
        )
        if len(finite):
            ranked = np.sort(finite) if name.startswith("dice") else np.sort(finite)[::-1]
            found = {"mean": finite.mean(), "sd": finite.std(), "median": np.median(finite)}
            line |= {key: float(value) for key, value in (found | {"worst": ranked[0], "best": ranked[-1]}).items()}
        summary.append(line)
    return summary


class CaseScores:
    """Handler of an evaluator: a table with the `scores` of every case, and `<name>_summary.csv` with their summary.

    Its column `dice` is the mean over the structures.

    The means go into `engine.state.metrics`; a `StatsHandler` that follows shows them.

    Args:
        path: CSV of the cases, written when the run ends.
        structures: see `scores`.

    Raises:
        InputError: when there is no structure, or one without values.
    """

    def __init__(self, path: str, *, structures: Structures = KITS_STRUCTURES) -> None:
        if not structures or not all(structures.values()):
            raise InputError([("", "structures", f"must be names with label values, got {dict(structures)}")])
        self.path = Path(path)
        self.structures = {name: list(values) for name, values in structures.items()}
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator whose batches are lists of cases with `case`, and whose output has both maps."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def add(self, engine: Engine) -> None:
        """Adds the cases of one iteration; `pred` and `label` are `(1, H, W, D)` and lie on one grid."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            label: MetaTensor = output["label"]
            volumes = output["pred"][0], label[0]
            found = scores(*volumes, spacing=label.pixdim.tolist(), structures=self.structures)
            dice = [found[f"dice_{name}"] for name in self.structures]
            self.rows.append({"case": case["case"], "dice": float(np.nanmean(dice)), **found})

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        summary = summarise(self.rows)
        engine.state.metrics.update((line["score"], line["mean"]) for line in summary)
        _write(self.path, self.rows)
        _write(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


class CaseReport:
    """Handler of an inference run: a table with the volume of every structure in ml and the file of every scan.

    Args:
        path: CSV, written when the run ends.
        structures: see `scores`.
    """

    def __init__(self, path: str, *, structures: Structures = KITS_STRUCTURES) -> None:
        self.path = Path(path)
        self.structures = {name: torch.tensor(values) for name, values in structures.items()}
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator whose batches are lists of cases, and whose output has the label map `pred`."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def add(self, engine: Engine) -> None:
        """Adds the cases of one iteration."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            label: MetaTensor = output["pred"]
            voxel = float(label.pixdim.prod()) / 1000
            voxels = {name: int(torch.isin(label.cpu(), values).sum()) for name, values in self.structures.items()}
            volumes = {f"{name}_ml": round(count * voxel, 2) for name, count in voxels.items()}
            self.rows.append({"case": case["case"], **volumes, "image": label.meta["filename_or_obj"]})

    def write(self, engine: Engine) -> None:
        """Writes the table."""
        _write(self.path, self.rows)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV; the file appears complete or not at all."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([list(rows[0]), *([*row.values()] for row in rows)])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(table.getvalue(), encoding="utf-8")
    unfinished.replace(path)
