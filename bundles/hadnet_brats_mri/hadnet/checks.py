"""Checks that hold for scans of several sequences; `cases.check_cases` makes them while it reads the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import nibabel
import numpy as np
from monai.data.utils import affine_to_spacing
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from .shared.conventions import LabelConvention
from .shared.data import sequence_files
from .shared.naming import stack_of
from .shared.sequences import channels_of
from .shared.validation import Case, InputError, case_name, check_cases
from .shared.volumes import voxels_of

__all__ = ["check_scans", "check_sequences"]

Sizes = Sequence[float]


def check_sequences(sequences: Sequence[str], withheld: Sequence[str]) -> None:
    """Checks which sequences teacher and student have.

    Args:
        sequences: the teacher's.
        withheld: those of them that the student does without.

    Raises:
        InputError: when a sequence is listed twice, or the student misses none, all, or one that the teacher lacks.
    """
    problems = []
    if len(set(sequences)) < len(sequences):
        problems.append(("", "sequences", f"must be different, got {list(sequences)}"))
    if not withheld or not set(withheld) < set(sequences):
        rule = f"must be one or more, but not all, of {', '.join(sequences)}; got {list(withheld)}"
        problems.append(("", "withheld", rule))
    if problems:
        raise InputError(problems)


def check_scans(
    splits: Sequence[Sequence[Case]],
    *,
    sequences: Sequence[Sequence[str]],
    mask_from: Sequence[str],
    stack: Sequence[str],
    size: Sizes,
    pixdim: Sizes,
    cut: bool,
    label: str | None = "label",
    label_order: Sequence[str] = ("NCR", "ED", "ET", "ET"),
) -> None:
    """Checks every file that a run will read, see `cases.check_cases`; a scan without tumour is allowed.

    Args:
        splits: lists of cases `{"image"}` or `{"image", "label"}`, as `transforms.LoadSequencesd` takes them.
        sequences: for each split those that are needed of its scans.
        mask_from: sequences that make up the brain.
        stack: sequences of 4D volumes.
        size: what the network sees, in voxels along S, A and L.
        pixdim: their size in mm.
        cut: whether a brain that is larger may be cut.
        label: key of the label map, `None` when there is none.
        label_order: classes of the label values 1, 2, ...; where two mean ET, all label maps must hold the same.

    Raises:
        InputError: as `check_cases`, and when a 4D volume has other channels, no voxel belongs to the brain, a sequence
            is constant in it, or it is larger than `size`.
    """
    needed = [list(dict.fromkeys([*names, *mask_from])) for names in sequences]
    found = [[_files(case, names) for case in split] for split, names in zip(splits, needed, strict=True)]

    def further(case: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[tuple[str, str]]:
        scan = {key: voxels_of(volume) for key, volume in volumes.items() if key != label}
        stacked = scan.get("image")
        if stacked is not None:
            try:
                held, complete = stack_of(case["image"], stack, told=case.get("stack"))
                channels = channels_of(case["needed"], stack=held, count=stacked.shape[-1], complete=complete)
            except InputError as error:
                yield "image", str(error).rpartition(": ")[2]
                return
            scan = {name: stacked[..., channel] for name, channel in zip(case["needed"], channels, strict=True)}
        affine = next(iter(volumes.values())).affine
        for name, rule in _problems_of_brain(scan, affine, mask_from, size=size, pixdim=pixdim, cut=cut):
            yield ("image" if stacked is not None else name), rule

    convention = LabelConvention((case for split in found for case in split), label=label, label_order=label_order)
    check_cases(
        found,
        images=["image", *dict.fromkeys(name for names in needed for name in names)],
        stacks=["image"],
        label=label,
        label_values=[convention.values],
        foreground=False,
        further=convention.added_to(further),
        settings={
            "mask_from": mask_from,
            "stack": stack,
            "size": size,
            "pixdim": pixdim,
            "cut": cut,
            "convention": convention.settings,
        },
    )


def _files(case: Case, needed: Sequence[str]) -> Case:
    """Returns the case with a file for each sequence it needs, unless it has one volume of them all."""
    files = sequence_files(case["image"], needed)
    rest = {key: value for key, value in case.items() if key != "image"}
    named = {"case": case_name(case), "needed": needed}
    return {**case, **named} if files is None else {**rest, **named, **files}


def _problems_of_brain(
    scan: Mapping[str, NDArray[np.generic]],
    affine: NDArray[np.float64],
    mask_from: Sequence[str],
    *,
    size: Sizes,
    pixdim: Sizes,
    cut: bool,
) -> Iterator[tuple[str, str]]:
    brain = np.ones(scan[mask_from[0]].shape, bool)
    for name in mask_from:  # as `sequences.brain_mask`
        brain &= scan[name] != 0
    if not brain.any():
        yield mask_from[0], f"there is no brain: no voxel in which {', '.join(mask_from)} are all non-zero"
        return
    for name, volume in scan.items():
        if (inside := volume[brain]).min() == inside.max():
            yield name, f"{name} is the same everywhere in the brain"
    long = _extent(brain, affine, pixdim)
    if not cut and any(voxels > most for voxels, most in zip(long, size, strict=True)):
        seen = f"the brain is {long} voxels long along S, A, L, the network sees {list(size)}"
        yield mask_from[0], f"{seen}: enlarge `size`, or allow cutting with `cut`"


def _extent(brain: NDArray[np.bool_], affine: NDArray[np.float64], pixdim: Sizes) -> list[int]:
    """Length of the brain along S, A and L in voxels of `pixdim` mm."""
    along = [np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    voxels = [int(used[-1] - used[0]) + 1 for used in along]
    spacing = affine_to_spacing(affine)
    axes = nibabel.io_orientation(affine)[:, 0].astype(int).tolist()
    millimetres = {axis: count * float(step) for axis, count, step in zip(axes, voxels, spacing, strict=True)}
    return [round(millimetres[axis] / step) for axis, step in zip((2, 1, 0), pixdim, strict=True)]
