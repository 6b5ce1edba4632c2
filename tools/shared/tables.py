"""Tables of runs: scores of the tumour regions, volumes of the tumour's parts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .evaluation import CaseTable, voxel_volume
from .files import write_table
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


class CaseScores(CaseTable):
    """Handler of an evaluator: a table with the `scores` of every case, and `<name>_summary.csv` with their summary.

    A summary has `cases`, how many have a finite score, and over these `mean`, `sd` (of the population), `median`,
    `worst` and `best`; `infinite`, how many have an infinite one; and of the cases whose reference holds the region
    `present`, how many have a finite score, and their `mean_present`; `failed`, how many cases could not be scored.

    The means over all cases go into `engine.state.metrics`; a `StatsHandler` that follows shows them.

    Args:
        path: CSV of the cases, written when the run ends.

    Attributes:
        lower_is_better: how the names of scores begin whose lowest is the best.
    """

    lower_is_better: tuple[str, ...] = ("hd95",)

    def row(self, item: Item) -> dict[str, Any]:
        """Returns the scores of one case.

        Args:
            item: `pred` and `label` `(1, H, W, D)`, in the values of files and on one grid.
        """
        label: MetaTensor = item["label"]
        return {"case": item["case"], **scores(item["pred"][0], label[0], spacing=label.pixdim.tolist())}

    def holds(self, item: Item) -> set[str]:
        """Returns the regions that the reference holds."""
        return {region for region in REGIONS if region_mask(item["label"], region).any()}

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        super().write(engine)
        summary = [
            _summary(name, self.rows, self.held, lower_is_better=name.startswith(self.lower_is_better))
            | {"failed": len(self.failed)}
            for name in (self.rows[0] if self.rows else ["dice"])
            if name != "case"
        ]
        engine.state.metrics |= {line["score"]: line["mean"] for line in summary}
        write_table(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


def _summary(
    name: str, rows: Sequence[Mapping[str, Any]], held: Sequence[Collection[str]], *, lower_is_better: bool
) -> dict[str, Any]:
    values, region = np.array([row[name] for row in rows], dtype=float), name.rpartition("_")[2]
    finite = np.isfinite(values)
    present = finite & np.array([region not in REGIONS or region in regions for regions in held], dtype=bool)
    statistics = [math.nan] * 5
    if finite.any():
        known = values[finite]
        extremes = sorted((known.min(), known.max()), reverse=lower_is_better)
        statistics = [float(value) for value in (known.mean(), known.std(), np.median(known), *extremes)]
    named = dict(zip(("mean", "sd", "median", "worst", "best"), statistics, strict=True))
    counted = {"infinite": int(np.isinf(values).sum()), "present": int(present.sum())}
    mean_present = float(values[present].mean()) if present.any() else math.nan
    return {"score": name, "cases": int(finite.sum()), **named, **counted, "mean_present": mean_present}


class CaseReport(CaseTable):
    """Handler of an inference run: a table with the volumes of the tumour's parts in each scan.

    Args:
        path: CSV with `case`, `NCR_ml`, `ED_ml`, `ET_ml`, the file `image` and `error`, written when the run ends.
    """

    named = ("case", "image")

    def row(self, item: Item) -> dict[str, Any]:
        """Returns volumes and file of one scan.

        Args:
            item: `pred` `(1, H, W, D)`, in the values of files.
        """
        pred: MetaTensor = item["pred"]
        voxel = voxel_volume(pred) / 1000
        parts = list(zip(CLASSES, VALUES, strict=True))[1:]
        volumes = {f"{name}_ml": round(int((pred == value).count_nonzero()) * voxel, 2) for name, value in parts}
        return {"case": item["case"], **volumes, "image": pred.meta.get("source", pred.meta["filename_or_obj"])}
