"""Tables that evaluation and inference leave behind: scores per structure and test set, volumes per scan."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .cases import InputError
from .stacks import STRUCTURES

__all__ = ["CaseReport", "CaseScores", "hd95", "scores", "summarise"]

NAMES = ("case", "patient", "frame", "set")

Row = dict[str, Any]


def scores(
    prediction: torch.Tensor,
    label: torch.Tensor,
    *,
    spacing: Sequence[float],
    structures: Sequence[str] = STRUCTURES,
) -> dict[str, float]:
    """Scores of one label map against another, structure by structure.

    Two empty masks have Dice 1 and count: an apical slice without right ventricle is right to have none.

    Args:
        prediction: `(H, W, D)`, 1 RV, 2 MYO, 3 LV.
        label: `(H, W, D)`, likewise.
        spacing: size of a voxel in mm.
        structures: those to compare.

    Returns:
        `dice_RV`, `hd95_RV` in mm and so on, and `dice`, the mean over the structures.
    """
    values = torch.tensor([_value(name) for name in structures]).view(-1, 1, 1, 1)
    found, true = (torch.as_tensor(volume).cpu() == values for volume in (prediction, label))
    dice = compute_dice(found[None], true[None], include_background=True, ignore_empty=False)[0]
    result: dict[str, float] = {}
    for name, *masks, value in zip(structures, found, true, dice, strict=True):
        result |= {f"dice_{name}": float(value), f"hd95_{name}": hd95(*masks, spacing=spacing)}
    return result | {"dice": float(dice.mean())}


def _value(structure: str) -> int:
    return 1 + STRUCTURES.index(structure)


def hd95(found: torch.Tensor, true: torch.Tensor, *, spacing: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance, the larger one of the two directions.

    Surfaces are the borders of the masks (6-neighbourhood). In a volume of one slice every voxel would be border, so
    its masks are compared in their plane.

    Args:
        found: mask `(H, W, D)`.
        true: mask `(H, W, D)`.
        spacing: size of a voxel in mm.

    Returns:
        The distance in mm; infinite if one of the masks is empty, NaN if both are.
    """
    if not (found.any() and true.any()):
        return math.inf if found.any() or true.any() else math.nan
    if found.shape[-1] == 1:
        found, true = found[..., 0], true[..., 0]
    pair = found[None, None], true[None, None]
    step = list(spacing)[: found.ndim]
    return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=step))


def summarise(rows: Sequence[Row], present: Sequence[Collection[str]] | None = None) -> list[Row]:
    """Summary of each score over the cases of each test set.

    With more than one set, the rows `over sets` have the same statistics of the sets' means, each set counting once.

    Args:
        rows: names (`NAMES`) and scores of the cases.
        present: of every case the structures that its reference holds; by default all.

    Returns:
        Rows with `set` and `score`; `cases`, how many have a finite score, and over these `mean`, `sd` (of the
        population), `median`, `worst` and `best`; `infinite`, how many have an infinite one; and of the cases whose
        reference holds the structure `present`, how many have a finite score, and their `mean_present`. NaN where there
        is none.
    """
    names = [name for name in rows[0] if name not in NAMES]
    groups: dict[str, list[tuple[Row, Collection[str]]]] = {}
    for row, held in zip(rows, present or [STRUCTURES] * len(rows), strict=True):
        groups.setdefault(row["set"], []).append((row, held))
    summary: list[Row] = []
    for key, group in groups.items():
        for name in names:
            structure = name.partition("_")[2]
            there = [row[name] for row, held in group if not structure or structure in held]
            summary.append({"set": key, "score": name} | _statistics(name, [row[name] for row, _ in group], there))
    if len(groups) > 1:
        for name in names:
            means, there = ([row[key] for row in summary if row["score"] == name] for key in ("mean", "mean_present"))
            summary.append({"set": "over sets", "score": name} | _statistics(name, means, there))
    return summary


def _statistics(name: str, values: Sequence[float], present: Sequence[float]) -> Row:
    finite, there = (np.array([value for value in some if math.isfinite(value)]) for some in (values, present))
    found: Row = dict.fromkeys(("mean", "sd", "median", "worst", "best"), math.nan)
    if finite.size:
        worst, best = (finite.max(), finite.min()) if name.startswith("hd95") else (finite.min(), finite.max())
        found = {"mean": finite.mean(), "sd": finite.std(), "median": np.median(finite), "worst": worst, "best": best}
    found = {"cases": finite.size} | {key: float(value) for key, value in found.items()}
    found |= {"infinite": int(np.isinf(values).sum()), "present": there.size}
    return found | {"mean_present": float(there.mean()) if there.size else math.nan}


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, NaN as an empty field; the file appears complete or not at all."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)


class CaseScores:
    """Handler of an evaluator: a table with the `scores` of every case, and `<name>_summary.csv` with their summary.

    The means go into `engine.state.metrics` too, `<set>/<score>` where there are several sets; a `StatsHandler` that
    follows shows them.

    Args:
        path: CSV of the cases, written when the run ends.
        structures: names of those that the labels show. Others are neither scored nor part of the mean.

    Raises:
        InputError: when there is no structure, or one of another name.
    """

    def __init__(self, path: str, *, structures: Sequence[str] = STRUCTURES) -> None:
        if not structures or not set(structures) <= set(STRUCTURES):
            rule = f"must be some of {', '.join(STRUCTURES)}, got {list(structures)}"
            raise InputError([("", "structures", rule)])
        self.path = Path(path)
        self.structures = list(structures)
        self.rows: list[Row] = []
        self.present: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator of cases with `NAMES`; `pred` and `label` of its output lie on one grid."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.STARTED, self.present.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def add(self, engine: Engine) -> None:
        """Adds the cases of one iteration; label maps are `(1, H, W, D)`."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            label: MetaTensor = output["label"]
            names = {name: case[name] for name in NAMES}
            volumes = output["pred"][0], label[0]
            self.rows.append(names | scores(*volumes, spacing=label.pixdim.tolist(), structures=self.structures))
            self.present.append([name for name in self.structures if (label == _value(name)).any()])

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        summary = summarise(self.rows, self.present)
        several = len({row["set"] for row in summary}) > 1
        for row in summary:
            engine.state.metrics[f"{row['set']}/{row['score']}" if several else row["score"]] = row["mean"]
        _write(self.path, self.rows)
        _write(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


class CaseReport:
    """Handler of an inference run: a table with the volumes of the structures in each scan.

    Args:
        path: CSV with `case`, `RV_ml`, `MYO_ml`, `LV_ml` and the scan's file, written when the run ends.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator of cases with `case` and `image`, whose output has a label map `pred`."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: _write(self.path, self.rows))

    def add(self, engine: Engine) -> None:
        """Adds the scans of one iteration; label maps are `(1, H, W, D)`."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            mask: MetaTensor = output["pred"]
            voxel = float(mask.pixdim.prod()) / 1000
            volumes = {f"{name}_ml": round(int((mask == _value(name)).sum()) * voxel, 2) for name in STRUCTURES}
            self.rows.append({"case": case["case"], **volumes, "image": mask.meta["filename_or_obj"]})
