"""Tables that evaluation and inference leave behind: scores per structure and test set, volumes per scan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .shared.evaluation import CaseTable, Row, voxel_volume
from .shared.files import write_table
from .shared.stacks import STRUCTURES
from .shared.validation import InputError

__all__ = ["CaseReport", "CaseScores", "hd95", "scores", "summarise"]

NAMES = ("case", "patient", "frame", "set")


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


class CaseScores(CaseTable):
    """Handler of an evaluator: a table with the `scores` of every case, and `<name>_summary.csv` with their summary.

    The summary also has `failed`, how many cases of a set could not be scored.

    The means go into `engine.state.metrics` too, `<set>/<score>` where there are several sets; a `StatsHandler` that
    follows shows them.

    Args:
        path: CSV of the cases, written when the run ends.
        structures: names of those that the labels show. Others are neither scored nor part of the mean.

    Raises:
        InputError: when there is no structure, or one of another name.
    """

    named = NAMES

    def __init__(self, path: str, *, structures: Sequence[str] = STRUCTURES) -> None:
        if not structures or not set(structures) <= set(STRUCTURES):
            rule = f"must be some of {', '.join(STRUCTURES)}, got {list(structures)}"
            raise InputError([("", "structures", rule)])
        super().__init__(path)
        self.structures = list(structures)

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns names and scores of one case; label maps are `(1, H, W, D)` and lie on one grid."""
        label: MetaTensor = item["label"]
        names, volumes = {name: item[name] for name in NAMES}, (item["pred"][0], label[0])
        return names | scores(*volumes, spacing=label.pixdim.tolist(), structures=self.structures)

    def holds(self, item: Mapping[str, Any]) -> list[str]:
        """Returns the structures that the reference holds."""
        return [name for name in self.structures if (item["label"] == _value(name)).any()]

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        super().write(engine)
        failed = Counter(row["set"] for row in self.failed)
        summary = summarise(self.rows, self.held) if self.rows else []
        unscored = [name for name in failed if name not in {row["set"] for row in summary}]
        summary += [{"set": name, "score": "dice", "cases": 0} for name in unscored]
        failed["over sets"] = failed.total()
        several = len({row["set"] for row in summary}) > 1
        for row in summary:
            row["failed"] = failed[row["set"]]
            name = f"{row['set']}/{row['score']}" if several else row["score"]
            engine.state.metrics[name] = row.get("mean", math.nan)
        write_table(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


class CaseReport(CaseTable):
    """Handler of an inference run: a table with the volumes of the structures in each scan.

    Args:
        path: CSV with `case`, `RV_ml`, `MYO_ml`, `LV_ml`, the scan's file and `error`, written when the run ends.
    """

    named = ("case", "image")

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns volumes and file of one scan; its label map `pred` is `(1, H, W, D)`."""
        mask: MetaTensor = item["pred"]
        voxel = voxel_volume(mask) / 1000
        volumes = {f"{name}_ml": round(int((mask == _value(name)).sum()) * voxel, 2) for name in STRUCTURES}
        return {"case": item["case"], **volumes, "image": mask.meta["filename_or_obj"]}
