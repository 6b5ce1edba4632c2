"""Checks of short-axis stacks that hold for this method alone; `cases.check_cases` comes first."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data.utils import affine_to_spacing, correct_nifti_header_if_necessary
from monai.transforms import LoadImage
from nibabel.openers import Opener
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from .cases import InputError, case_name
from .scans import stem
from .stacks import STRUCTURES, check_order, rules_of_axes, rules_of_label

__all__ = ["check_stacks", "has_bfloat16"]

logger = logging.getLogger(__name__)

Case = Mapping[str, Any]
Problem = tuple[str, str, str]


def check_stacks(
    splits: Sequence[Sequence[Case]], *, label: str | None = "label", label_order: Sequence[str] = STRUCTURES
) -> None:
    """Checks patients, headers and the meaning of the labels.

    Args:
        splits: lists of cases, for example training and validation; no `patient` may occur in two of them. Without
            this entry, file names tell the patients, and such a one is warned of.
        label: key of the label map, `None` when there is none.
        label_order: structures of the label values 1, 2 and 3.

    Raises:
        InputError: when a patient is in two splits, an image has no voxel spacing or its slices do not lie along the
            third axis, `label_order` is no order of RV, MYO and LV, or a label map contradicts it: the left cavity is
            enclosed by myocardium in every slice, the other structures are not.
    """
    check_order(label_order)
    problems = list(_shared_patients(splits))
    if problems:
        raise InputError(problems)

    def rules_broken(case: Case) -> list[Problem]:
        broken = [(str(case["image"]), rule) for rule in _rules_of_header(str(case["image"]))]
        if label is not None:
            broken += [(str(case[label]), rule) for rule in rules_of_label(_array(str(case[label])), label_order)]
        return [(case_name(case), *problem) for problem in broken]

    cases = [case for split in splits for case in split]
    found = thread_map(rules_broken, cases, max_workers=4, desc="Checking stacks", unit="case")
    problems = [problem for case in found for problem in case]
    if problems:
        raise InputError(problems)


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
    name = stem(path)
    if "patient" in case:
        return str(case["patient"])
    if name in ("ED_img", "ES_img"):
        return path.parent.name
    return re.sub(r"_(frame\d+|E[DS](_img)?)$", "", name)


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


def _rules_of_header(path: str) -> Iterator[str]:
    """Yields what is wrong with the voxel spacing, from the header alone where the file is NIfTI."""
    if path.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        with Opener(path) as file:  # as it is: load puts 1 in the place of 0
            header = type(image.header).from_fileobj(file, check=False)
        pixdim = header["pixdim"][1:4]
        blank = header["qform_code"] == header["sform_code"] == 0 and (pixdim == 1).all()
        if blank or not (np.isfinite(pixdim) & (pixdim != 0)).all():
            yield f"voxel spacing is missing, pixdim is {pixdim.tolist()}"
            return
        image = correct_nifti_header_if_necessary(image)
    else:
        image = LoadImage(image_only=True)(path)
    spacing = np.asarray(affine_to_spacing(np.asarray(image.affine), 3))
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        yield f"voxel spacing is missing, the affine's is {spacing.tolist()}"
    else:
        yield from rules_of_axes(image.shape, affine=np.asarray(image.affine))


def _array(path: str) -> NDArray[Any]:
    return np.asarray(LoadImage(image_only=True)(path))
