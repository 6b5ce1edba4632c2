# Identical in every bundle; python -m tools check compares the copies.
"""Tables of runs: scores of the tumour regions, volumes of the tumour's parts."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .regions import CLASSES, REGIONS, VALUES, region_mask

__all__ = ["CaseReport", "CaseScores", "Item", "scores"]

Item = Mapping[str, Any]


def scores(prediction: torch.Tensor, label: torch.Tensor, *, spacing: Sequence[float]) -> dict[str, float]:
    """Scores of the regions in one label map against another.

    Surfaces are MONAI's: voxels that touch another value or the border of the volume. A region that neither map has:
    Dice 1 and distance NaN; one that only one map has: 0 and infinite.

    Args:
        prediction: `(H, W, D)`, in the values of files.
        label: `(H, W, D)`, likewise.
        spacing: size of a voxel in mm.

    Returns:
        `dice_ET`, `dice_TC`, `dice_WT`, their mean `dice`, and in mm `hd95_ET`, `hd95_TC` and `hd95_WT`, the larger of
        the two directed 95th percentiles of the surface distance.
    """
    found, true = (
        torch.stack([region_mask(volume, region).cpu() for region in REGIONS])[None] for volume in (prediction, label)
    )
    dice = compute_dice(found, true, ignore_empty=False)[0]
    alone = torch.logical_xor(*(masks[0].flatten(1).any(1) for masks in (found, true)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masks that are empty
        distance = compute_hausdorff_distance(
            found, true, include_background=True, percentile=95, spacing=list(spacing)
        )[0]
    distance[alone] = math.inf  # for which MONAI has NaN
    named = {f"dice_{region}": float(value) for region, value in zip(REGIONS, dice, strict=True)}
    distances = {f"hd95_{region}": float(value) for region, value in zip(REGIONS, distance, strict=True)}
    return {**named, "dice": float(dice.mean()), **distances}


class _Table:
    """Handler that gathers one row per case and writes them when the run ends."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator whose batches are lists of cases with their name `case`."""
        events = {Events.STARTED: self.clear, Events.ITERATION_COMPLETED: self.add, Events.EPOCH_COMPLETED: self.write}
        for event, reaction in events.items():
            engine.add_event_handler(event, reaction)

    def clear(self) -> None:
        """Forgets the rows of an earlier run."""
        self.rows = []

    def row(self, item: Item) -> dict[str, Any]:
        """Returns what the table says of one case, from the entries of its batch and its output."""
        raise NotImplementedError

    def add(self, engine: Engine) -> None:
        """Adds the cases of one iteration."""
        pairs = zip(engine.state.batch, engine.state.output, strict=True)
        self.rows += [{"case": case["case"], **self.row({**case, **output})} for case, output in pairs]

    def write(self, engine: Engine) -> None:
        """Writes the table."""
        _save(self.path, self.rows)


def _save(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys as CSV, NaN as an empty field; no reader ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".csv.partial")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(rows[0])
        lines.writerows(["" if value != value else value for value in row.values()] for row in rows)
    unfinished.replace(path)


class CaseScores(_Table):
    """Handler of an evaluator: a table with the `scores` of every case, and `<name>_summary.csv` with their summary.

    A summary has `cases`, how many have a finite score, and over these `mean`, `sd` (of the population), `median`,
    `worst` and `best`; `infinite`, how many have an infinite one; and of the cases whose reference holds the region
    `present`, how many have a finite score, and their `mean_present`.

    The means over all cases go into `engine.state.metrics`; a `StatsHandler` that follows shows them.

    Args:
        path: CSV of the cases, written when the run ends.

    Attributes:
        lower_is_better: how the names of scores begin whose lowest is the best.
    """

    lower_is_better: tuple[str, ...] = ("hd95",)

    def clear(self) -> None:
        """Forgets the rows of an earlier run."""
        super().clear()
        self.held: list[set[str]] = []

    def row(self, item: Item) -> dict[str, float]:
        """Returns the scores of one case.

        Args:
            item: `pred` and `label` `(1, H, W, D)`, in the values of files and on one grid.
        """
        label: MetaTensor = item["label"]
        self.held.append({region for region in REGIONS if region_mask(label, region).any()})
        return scores(item["pred"][0], label[0], spacing=label.pixdim.tolist())

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        super().write(engine)
        summary = [
            _summary(name, self.rows, self.held, lower_is_better=name.startswith(self.lower_is_better))
            for name in self.rows[0]
            if name != "case"
        ]
        engine.state.metrics |= {line["score"]: line["mean"] for line in summary}
        _save(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


def _summary(
    name: str, rows: Sequence[Mapping[str, Any]], held: Sequence[Collection[str]], *, lower_is_better: bool
) -> dict[str, Any]:
    values, region = np.array([row[name] for row in rows]), name.rpartition("_")[2]
    finite = np.isfinite(values)
    present = finite & [region not in REGIONS or region in regions for regions in held]
    statistics = [math.nan] * 5
    if finite.any():
        known = values[finite]
        extremes = sorted((known.min(), known.max()), reverse=lower_is_better)
        statistics = [float(value) for value in (known.mean(), known.std(), np.median(known), *extremes)]
    named = dict(zip(("mean", "sd", "median", "worst", "best"), statistics, strict=True))
    counted = {"infinite": int(np.isinf(values).sum()), "present": int(present.sum())}
    mean_present = float(values[present].mean()) if present.any() else math.nan
    return {"score": name, "cases": int(finite.sum()), **named, **counted, "mean_present": mean_present}


class CaseReport(_Table):
    """Handler of an inference run: a table with the volumes of the tumour's parts in each scan.

    Args:
        path: CSV with `case`, `NCR_ml`, `ED_ml`, `ET_ml` and the file `image`, written when the run ends.
    """

    def row(self, item: Item) -> dict[str, Any]:
        """Returns volumes and file of one scan.

        Args:
            item: `pred` `(1, H, W, D)`, in the values of files.
        """
        pred: MetaTensor = item["pred"]
        voxel = float(pred.pixdim.prod()) / 1000
        parts = list(zip(CLASSES, VALUES, strict=True))[1:]
        volumes = {f"{name}_ml": round(int((pred == value).count_nonzero()) * voxel, 2) for name, value in parts}
        return volumes | {"image": pred.meta["filename_or_obj"]}
