"""Classes of the tumour, their values in label files, and the regions that BraTS scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import convert_to_tensor

from .validation import InputError

__all__ = ["CLASSES", "REGIONS", "VALUES", "label_sets", "region_mask"]

# NCR: necrotic and non-enhancing core, ED: oedema, ET: enhancing tumour.
CLASSES = ("background", "NCR", "ED", "ET")
VALUES = (0, 1, 2, 4)  # in files; BraTS has no 3 since 2017
# Enhancing tumour, tumour core, whole tumour: the classes that make up each.
REGIONS = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}


def region_mask(volume: torch.Tensor, region: str, *, values: Sequence[int] = VALUES) -> torch.Tensor:
    """Returns where a label map shows a region.

    Args:
        volume: label map of any shape.
        region: one of `REGIONS`.
        values: what the map holds for each of `CLASSES`: as in files, or `range(4)` for class indices.

    Returns:
        Boolean mask of the same shape, without metadata.
    """
    plain: torch.Tensor = convert_to_tensor(volume, track_meta=False)
    wanted = [values[index] for index in REGIONS[region]]
    return torch.isin(plain, torch.tensor(wanted, dtype=plain.dtype, device=plain.device))


def label_sets(label_order: Sequence[str]) -> list[list[int]]:
    """Returns the sets of values that label maps may hold.

    Args:
        label_order: classes of the values 1, 2, ...: each one of NCR, ED and ET.

    Returns:
        All values or, where two of them mean ET as in the labels of 2023 (3) and of earlier years (4), all but either.

    Raises:
        InputError: when it names another class, or does not name each.
    """
    if set(label_order) != set(CLASSES[1:]):
        raise InputError([("", "label_order", f"must name {', '.join(CLASSES[1:])}, got {list(label_order)}")])
    values = range(len(label_order) + 1)
    enhancing = [value for value in values[1:] if label_order[value - 1] == "ET"]
    return [[value for value in values if value == kept or value not in enhancing] for kept in enhancing]
