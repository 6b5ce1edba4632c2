"""The table of scores with those of uncertainty maps."""

from __future__ import annotations

from typing import Any

from .shared.regions import REGIONS, region_mask
from .shared.tumour_scores import CaseScores, Item
from .uncertainty import uncertainty_scores

__all__ = ["UncertainCaseScores"]


class UncertainCaseScores(CaseScores):
    """`CaseScores` with the `uncertainty_scores` of the regions of cases that have maps of uncertainty."""

    lower_is_better = ("hd95", "ftp_auc", "ftn_auc")

    def row(self, item: Item) -> dict[str, Any]:
        """Returns the scores of one case.

        Args:
            item: `pred` and `label` `(1, H, W, D)`, in the values of files and on one grid; with maps such as
                `uncertainty_ET` `(1, H, W, D)`, from 0 to 100, also the mask `brain`.
        """
        result = super().row(item)
        for region in REGIONS:
            uncertainty = item.get(f"uncertainty_{region}")
            if uncertainty is not None:
                masks = [region_mask(item[key], region) for key in ("pred", "label")]
                found = uncertainty_scores(*masks, uncertainty=uncertainty, brain=item["brain"])
                result |= {f"{name}_{region}": value for name, value in found.items()}
        return result
