"""Checks of short-axis stacks; `cases.check_cases` makes them while it reads the files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from .cases import Case, InputError, Problem, case_name, check_cases, problems_of_splits
from .volumes import voxels_of

__all__ = ["check_stacks", "has_bfloat16"]

logger = logging.getLogger(__name__)

STRUCTURES = ("RV", "MYO", "LV")
ENCLOSED = 0.75  # of the outline; at least 0.99 of a cavity's is myocardium in ACDC, at most 0.46 in any other pair


def check_stacks(
    splits: Sequence[Sequence[Case]], *, label: str | None = "label", label_order: Sequence[str] | None = STRUCTURES
) -> None:
    """Checks every file that a run will read, see `cases.check_cases`, patients and the meaning of the labels.

    Args:
        splits: lists of cases, for example training and validation; no `patient` may occur in two of them. Without
            this entry, file names tell the patients, and such a one is warned of.
        label: key of the label map, `None` when there is none.
        label_order: structures of the label values 1, 2 and 3; `None`: they may be in any order.

    Raises:
        InputError: as `check_cases`, and when a patient is in two splits, an image's slices do not lie along the third
            axis, `label_order` is no order of RV, MYO and LV, or a label map contradicts it: the left cavity is
            enclosed by myocardium in every slice, the other structures are not.
    """
    if label_order is not None and sorted(label_order) != sorted(STRUCTURES):
        raise InputError([("", "label_order", f"must order {', '.join(STRUCTURES)}, got {list(label_order)}")])
    problems = [*problems_of_splits(splits, ["image"]), *_shared_patients(splits)]
    if problems:
        raise InputError(problems)

    def further(_: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[tuple[str, str]]:
        yield from (("image", rule) for rule in _rules_of_axes(volumes["image"]))
        if label is not None and label_order is not None:
            yield from ((label, rule) for rule in _rules_of_label(voxels_of(volumes[label]), label_order))

    check_cases(splits, label=label, label_values=[[0, 1, 2, 3]], further=further, settings=label_order)


def has_bfloat16() -> bool:
    """Returns whether the processor has instructions for bfloat16; says so where it has none, which makes it slow."""
    found = any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    if not found:
        logger.warning(
            "This processor has no bfloat16 instructions (AVX512-BF16, AMX): single precision is used instead."
        )
    return found


def patient_of(case: Case) -> str:
    """Returns the entry `patient` of a case, else what its image's name says: `001_frame01`, `001_ED`, `001/ED_img`."""
    path = Path(case["image"])
    stem = path.name.partition(".")[0]
    if "patient" in case:
        return str(case["patient"])
    if stem in ("ED_img", "ES_img"):
        return path.parent.name
    return re.sub(r"_(frame\d+|E[DS](_img)?)$", "", stem)


def _shared_patients(splits: Sequence[Sequence[Case]]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, split in enumerate(splits):
        for case in split:
            patient = patient_of(case)
            if seen.setdefault(patient, index) != index:
                problem = case_name(case), str(case["image"]), f"patient {patient} is in two splits"
                if "patient" in case:
                    yield problem
                else:  # MONAI Label draws scans, and nobody can tell it which belong together
                    logger.warning("case %s: %s: %s, the validation is optimistic", *problem)


def _rules_of_axes(image: Nifti1Image) -> Iterator[str]:
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    if image.shape[2] > 1 and spacing[2] < spacing.max() - 1e-3:
        millimetres = " x ".join(f"{size:.3g}" for size in spacing)
        yield f"slices must lie along the third axis, where voxels are longest; they are {millimetres} mm"


def _rules_of_label(label: NDArray[Any], label_order: Sequence[str]) -> Iterator[str]:
    enclosed = _enclosure(label.astype(np.uint8))
    claimed = tuple(label_order.index(name) + 1 for name in ("LV", "MYO"))
    for cavity, wall in permutations((1, 2, 3), 2):
        if enclosed[cavity, wall] > ENCLOSED > enclosed[claimed]:
            yield (
                f"contradicts label_order {list(label_order)}: value {cavity} is enclosed by value {wall}, "
                "as LV is by MYO"
            )


def _enclosure(label: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns in `[a, b]` the share of the outline of value a in the slices `[..., z]` that borders on value b.

    Args:
        label: label map `(H, W, D)` of the values 0 to 3.
    """
    borders = np.zeros((4, 4))
    for one, other in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
        pairs = np.bincount((4 * one + other).ravel(), minlength=16).reshape(4, 4)
        borders += pairs + pairs.T
    np.fill_diagonal(borders, 0)
    return borders / np.maximum(borders.sum(axis=1, keepdims=True), 1)
