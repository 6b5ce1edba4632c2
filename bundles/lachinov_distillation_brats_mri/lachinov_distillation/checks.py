"""Checks of scans and label maps before a run; `cases.check_cases` makes them while it reads the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from nibabel.nifti1 import Nifti1Image

from .shared.conventions import LabelConvention
from .shared.data import sequence_files
from .shared.naming import stack_of
from .shared.sequences import channels_of
from .shared.validation import Case, InputError, case_name, check_cases
from .shared.volumes import voxels_of

__all__ = ["check_patch", "check_scans", "check_sequences"]


def check_sequences(sequences: Sequence[str]) -> None:
    """Checks which sequences the networks see.

    Raises:
        InputError: when there is none, or one is listed twice.
    """
    if not sequences or len(set(sequences)) < len(sequences):
        raise InputError([("", "sequences", f"must be one or more, all different, got {list(sequences)}")])


def check_patch(patch_size: Sequence[int]) -> None:
    """Checks that the first two axes of a patch can be exchanged.

    Raises:
        InputError: when they differ in length.
    """
    if patch_size[0] != patch_size[1]:
        raise InputError([("", "patch_size", f"must be as long along L as along P, got {list(patch_size)}")])


def check_scans(
    splits: Sequence[Sequence[Case]],
    *,
    sequences: Sequence[str],
    stack: Sequence[str],
    label_order: Sequence[str] | None = None,
) -> None:
    """Checks every file that a run will read, see `cases.check_cases`; a scan without tumour is allowed.

    Args:
        splits: lists of cases as `sequences.LoadSequencesd` and `labels.LoadLabeld` take them; none may be empty.
        sequences: those that the networks see.
        stack: sequences of 4D volumes whose case does not tell.
        label_order: classes of the label values 1, 2, ... of cases that do not tell; `None`: there are no labels. Where
            two mean ET, all label maps of one source must hold the same.

    Raises:
        InputError: as `check_cases`, and when a 4D volume has other channels, a sequence has no positive voxel, or soft
            labels have other channels than three.
    """
    label = None if label_order is None else "label"
    found = [[_files(case, sequences, labelled=label is not None) for case in split] for split in splits]
    marked = [case for split in found for case in split if "label" in case]
    convention = LabelConvention(marked, label=label, label_order=label_order or ())

    def further(case: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[tuple[str, str]]:
        if "soft" in volumes and volumes["soft"].shape[-1] != 3:
            yield "soft", f"soft labels must have 3 channels (WT, TC, ET), have {volumes['soft'].shape[-1]}"
        if "soft" in volumes and voxels_of(volumes["soft"]).dtype != np.uint8:
            yield "soft", f"soft labels must be 0 to 255 as uint8, are {voxels_of(volumes['soft']).dtype}"
        scan = {name: voxels_of(volumes[name]) for name in sequences if name in volumes}
        if "image" in volumes:
            stacked = voxels_of(volumes["image"])
            try:
                held, complete = stack_of(case["image"], stack, told=case.get("stack"))
                channels = channels_of(sequences, stack=held, count=stacked.shape[-1], complete=complete)
            except InputError as error:
                yield "image", str(error).rpartition(": ")[2]
                return
            scan = {name: stacked[..., channel] for name, channel in zip(sequences, channels, strict=True)}
        for name, volume in scan.items():
            if not volume.max() > 0:
                yield (name if name in volumes else "image"), f"{name} has no positive voxel"
            elif volume.min() == volume.max():
                yield "image", f"{name} is the same everywhere"

    check_cases(
        found,
        images=["image", *sequences, "soft"],
        stacks=["image", "soft"],
        label=label,
        label_values=[convention.values],
        foreground=False,
        further=convention.added_to(further),
        settings={"sequences": sequences, "stack": stack, "convention": convention.settings},
    )


def _files(case: Case, sequences: Sequence[str], *, labelled: bool) -> Case:
    """Returns the case with a file for each sequence, unless it has one volume of them all, and with what is learnt."""
    files = sequence_files(case["image"], sequences) or {"image": case["image"]}
    unused = {"image", "label" if case.get("soft") or not labelled else "soft"}
    rest = {key: value for key, value in case.items() if key not in unused and value is not None}
    return {**rest, "case": case_name(case), **files}
