"""The table of scores per structure and test set that an evaluation writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .shared.evaluation import Row
from .shared.stacks import STRUCTURES
from .shared.tables import ScoreTable, statistics, summarise
from .shared.validation import InputError

__all__ = ["CaseScores", "hd95", "scores"]


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


class CaseScores(ScoreTable):
    """`ScoreTable` of the `scores` of every case, whose summary is by test set.

    With more than one set, its rows `over sets` have the same statistics of the sets' means, each set counting once,
    and the metrics are called `<set>/<score>`.

    Args:
        path: CSV of the cases, written when the run ends.
        structures: names of those that the labels show. Others are neither scored nor part of the mean.

    Raises:
        InputError: when there is no structure, or one of another name.
    """

    named = ("case", "patient", "frame", "set")

    def __init__(self, path: str, *, structures: Sequence[str] = STRUCTURES) -> None:
        if not structures or not set(structures) <= set(STRUCTURES):
            rule = f"must be some of {', '.join(STRUCTURES)}, got {list(structures)}"
            raise InputError([("", "structures", rule)])
        super().__init__(path)
        self.structures = list(structures)

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns names and scores of one case; label maps are `(1, H, W, D)` and lie on one grid."""
        label: MetaTensor = item["label"]
        names, volumes = {name: item[name] for name in self.named}, (item["pred"][0], label[0])
        return names | scores(*volumes, spacing=label.pixdim.tolist(), structures=self.structures)

    def holds(self, item: Mapping[str, Any]) -> dict[str, bool]:
        """Returns whether the reference holds each structure."""
        return {name: bool((item["label"] == _value(name)).any()) for name in self.structures}

    def summary(self) -> list[Row]:
        """Returns the summary of each set, and over the sets."""
        summary: list[Row] = []
        failed = Counter(row["set"] for row in self.failed)
        for key in dict.fromkeys([row["set"] for row in self.rows] + list(failed)):
            own = [row["set"] == key for row in self.rows]
            lines = summarise(list(compress(self.rows, own)), list(compress(self.held, own)))
            lines = lines or [{"score": "dice"} | statistics([], [])]
            summary += [{"set": key, **line, "failed": failed[key]} for line in lines]
        return summary + [line | {"failed": failed.total()} for line in _of_all_sets(summary)]


def _of_all_sets(summary: Sequence[Row]) -> list[Row]:
    """The summary over the sets, where there are several."""
    if len({line["set"] for line in summary}) < 2:
        return []
    return [_over_sets(name, summary) for name in dict.fromkeys(line["score"] for line in summary)]


def _over_sets(name: str, summary: Sequence[Row]) -> Row:
    lower = name.startswith("hd95")
    lines = [line for line in summary if line["score"] == name]
    means, there = (
        statistics([line[key] for line in lines], [True] * len(lines), lower_is_better=lower)
        for key in ("mean", "mean_present")
    )
    return {"set": "over sets", "score": name, **means, "present": there["cases"], "mean_present": there["mean"]}
