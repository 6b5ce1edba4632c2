"""Scores of the tumour regions, and the table of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from .regions import REGIONS, region_mask
from .tables import ScoreTable

__all__ = ["CaseScores", "Item", "scores"]

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


class CaseScores(ScoreTable):
    """The table and the summary of the `scores` of every case."""

    def row(self, item: Item) -> dict[str, Any]:
        """Returns the scores of one case.

        Args:
            item: `pred` and `label` `(1, H, W, D)`, in the values of files and on one grid.
        """
        label: MetaTensor = item["label"]
        return {"case": item["case"], **scores(item["pred"][0], label[0], spacing=label.pixdim.tolist())}

    def holds(self, item: Item) -> dict[str, bool]:
        """Returns whether the reference holds each region."""
        return {region: bool(region_mask(item["label"], region).any()) for region in REGIONS}
