"""Evaluation in millimetres and the tables that runs write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.metrics.utils import get_edge_surface_distance

from .shared.evaluation import CaseTable, voxel_volume
from .shared.tables import ScoreTable

__all__ = ["CaseReport", "CaseScores", "MillimetreMetric", "scores"]


class MillimetreMetric(IgniteMetricHandler):
    """Metric handler that hands each label's voxel spacing to a surface metric, so that its unit is mm.

    MONAI's own handlers of surface metrics have no way to pass the spacing.
    """

    def update(self, output: tuple[list[MetaTensor], list[MetaTensor]]) -> None:
        """Adds predictions and labels, lists of masks `(1, H, W, D)`."""
        for prediction, label in zip(*output, strict=True):
            self.metric_fn([prediction], [label], spacing=[label.pixdim.tolist()])


def scores(prediction: torch.Tensor, label: torch.Tensor, *, spacing: Sequence[float]) -> dict[str, float]:
    """Scores of one mask against another.

    Those of MONAI's metrics, whose distances are found once for all three surface scores. Against an empty mask the
    overlap scores are 0 and the distances infinite; two empty masks have Dice and IoU 1, and NaN for all else.

    Args:
        prediction: `(H, W, D)`, non-zero is foreground.
        label: `(H, W, D)`, non-zero is foreground.
        spacing: size of a voxel in mm.

    Returns:
        `dice`, `iou`, `precision`, `recall`, and in mm `hd` (Hausdorff distance), `hd95` (the larger of the two
        directed 95th percentiles) and `asd` (mean of the distances in both directions).
    """
    found, true = prediction.bool(), label.bool()
    both, count, true_count = (int(mask.sum()) for mask in (found & true, found, true))
    result = {
        "dice": _share(2 * both, count + true_count, empty=1.0),
        "iou": _share(both, count + true_count - both, empty=1.0),
        "precision": _share(both, count, empty=math.nan if not true_count else 0.0),
        "recall": _share(both, true_count, empty=math.nan if not count else 0.0),
    }
    if not count or not true_count:
        distance = math.inf if count or true_count else math.nan
        return result | dict.fromkeys(("hd", "hd95", "asd"), distance)
    _, distances, _ = get_edge_surface_distance(found, true, spacing=list(spacing), symmetric=True)
    return result | {
        "hd": float(max(distance.max() for distance in distances)),
        "hd95": float(max(torch.quantile(distance, 0.95) for distance in distances)),
        "asd": float(torch.cat(tuple(distances)).mean()),
    }


def _share(part: int, whole: int, *, empty: float) -> float:
    return part / whole if whole else empty


class CaseReport(CaseTable):
    """What an inference run found: one row per scan with the volume of the atrium in ml.

    `atrium_found` is that of the locator, or `no locator` when the whole volume was segmented window by window.

    Args:
        path: the CSV.
    """

    named = ("case", "image")

    def row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the volume and the file of one scan."""
        mask: MetaTensor = item["pred"]
        volume = float(mask.sum()) * voxel_volume(mask) / 1000
        return _named(item) | {"volume_ml": round(volume, 2), "image": mask.meta["filename_or_obj"]}


def _named(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"case": item["case"], "atrium_found": item["image"].meta.get("atrium_found", "no locator")}


class CaseScores(ScoreTable):
    """`ScoreTable` of `scores`: `<score>_LA` of the left atrium, and `dice`, the mean over this only class."""

    def row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the scores of one case."""
        label: MetaTensor = item["label"]
        found = scores(item["pred"][0], label[0], spacing=label.pixdim.tolist())
        return _named(item) | {f"{name}_LA": value for name, value in found.items()} | {"dice": found["dice"]}

    def holds(self, item: Mapping[str, Any]) -> dict[str, bool]:
        """Returns whether the reference holds an atrium."""
        return {"LA": bool(item["label"].any())}
