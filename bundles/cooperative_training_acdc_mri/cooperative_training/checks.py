"""Checks of short-axis stacks; `cases.check_cases` makes them while it reads the files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nibabel.nifti1 import Nifti1Image

from .shared.patients import patient_of
from .shared.scans import stem
from .shared.stacks import STRUCTURES, check_order, rules_of_stack
from .shared.validation import Case, InputError, Problem, case_name, check_cases, problems_of_splits

__all__ = ["check_stacks"]

logger = logging.getLogger(__name__)


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
    if label_order is not None:
        check_order(label_order)
    problems = [*problems_of_splits(splits, ["image"]), *_shared_patients(splits)]
    if problems:
        raise InputError(problems)

    def further(_: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[tuple[str, str]]:
        ordered = None if label_order is None else label
        yield from rules_of_stack(volumes, label=ordered, label_order=label_order or STRUCTURES)

    check_cases(splits, label=label, label_values=[[0, 1, 2, 3]], further=further, settings=label_order)


def patient_of_case(case: Case) -> str:
    """Returns the entry `patient` of a case, else what its image's name says: `001_frame01`, `001_ED`, `001/ED_img`."""
    path = Path(case["image"])
    name = path.parent.name if stem(path) in ("ED_img", "ES_img") else stem(path)
    return str(case.get("patient") or patient_of(name))


def _shared_patients(splits: Sequence[Sequence[Case]]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, split in enumerate(splits):
        for case in split:
            patient = patient_of_case(case)
            if seen.setdefault(patient, index) != index:
                problem = case_name(case), str(case["image"]), f"patient {patient} is in two splits"
                if "patient" in case:
                    yield problem
                else:  # MONAI Label draws scans, and nobody can tell it which belong together
                    logger.warning("case %s: %s: %s, the validation is optimistic", *problem)
