"""Series of DICOM as scans: which of a folder are meant, and their slices as one volume, or why they are none."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nibabel.nifti1 import Nifti1Image

from .planes import ordered
from .scans import DERIVED, is_volume, stem
from .series import Series, files_below, holds_dicom, series_below
from .slices import Header, read_header, read_voxels
from .validation import InputError
from .volumes import VolumeError, folder_readers

__all__ = ["dicom_scans", "find_series", "read_series", "series_files"]

logger = logging.getLogger(__name__)

# The last part of a path that is none of a file: UIDs or numbers of series, and which of the images at each position.
CHOICE = re.compile(r"(\d[\d.]*(?:\+\d[\d.]*)*)(?:_phase(\d+))?")
Rule = tuple[str, str, str]


def dicom_scans(
    root: str | Path, *, modality: str, series: Any = None, phase: int | None = None
) -> list[dict[str, str]] | None:
    """Returns what `find_series` does, `None` for a path that is none of DICOM.

    Raises:
        InputError: as `find_series`, and when a path that is none of DICOM has a series or a phase.
    """
    if holds_dicom(root):
        return find_series(root, modality=modality, series=series, phase=phase)
    if series is not None or phase is not None:
        raise InputError([("", str(root), "holds no DICOM, of which series and phase choose")])
    return None


def find_series(
    root: str | Path, *, modality: str, series: Any = None, phase: int | None = None
) -> list[dict[str, str]]:
    """Lists the series to segment: of every study in a folder the one that fits, or the one that is chosen.

    Those fit that are of the modality and have more than one position; localizers, secondary captures, colour images
    and what is derived as documents (SEG, SR) do not.

    Args:
        root: a folder of any depth, or a file of a series: then the whole series is meant.
        modality: `CT` or `MR`.
        series: UID or number of a series, which may be none that fits by itself; several, as a list or a text with
            commas, are one volume: cine MRI often has a series for every slice.
        phase: which of several images at each position, from 0 in the order of their times; in cine MRI 0 is
            end-diastole as a rule.

    Returns:
        Cases `{"case", "image", "series"}`, sorted by name: `image` is the folder of the series where it holds no
        other, else `<folder>/<UID or numbers>[_phase<n>]`; `volumes.read_volume` takes both. `series` has the UIDs.

    Raises:
        InputError: when none or several series of a study fit, naming all; there are volumes beside DICOM; or a file is
            damaged.
    """
    place = Path(root).absolute()
    alone = place.is_file()
    folder = place.parent if alone else place
    if alone and series is not None:
        raise InputError([("", str(place), "is one file, whose series is meant: give its folder to choose another")])
    if not alone:
        _check_no_volumes(folder)
    found = series_below(folder)
    wanted = [_uid_of(place)] if alone else _wanted(series)
    if phase is not None and (not isinstance(phase, int) or phase < 0):  # type: ignore[redundant-expr]  # as typed
        raise InputError([("", "phase", f"must be a whole number from 0, got {phase!r}")])
    studies: dict[str, list[Series]] = {}
    for each in found:
        studies.setdefault(each.study, []).append(each)
    if named := {each.study for each in found if each.uid in wanted}:  # a UID is of one study, a number of every
        studies = {study: studies[study] for study in named}
    chosen, problems = [], list[Rule]()
    for study, held in studies.items():
        try:
            chosen.append(_chosen(held, wanted, modality))
        except VolumeError as error:
            problems.append(("", str(folder), f"study {study}: {error}"))
    if problems or not chosen:
        raise InputError(problems or [("", str(folder), "holds no series of DICOM")])
    for picked in chosen:
        _warn_of_gaps(picked)
    names = _names([_common_folder(picked) for picked in chosen], folder, chosen)
    cases = [_case(name, picked, found, phase) for name, picked in zip(names, chosen, strict=True)]
    return sorted(cases, key=lambda case: case["case"])


def _warn_of_gaps(picked: Sequence[Series]) -> None:
    """Warns where numbers of images are left out: the geometry does not tell if the missing ones lie at an end."""
    for each in picked:
        numbers = {number for piece in each.slices if (number := piece.order[-1]) is not None}
        whole = int(max(numbers)) - int(min(numbers)) + 1 if numbers else 0
        if len(numbers) == len(each.slices) < whole:
            logger.warning(
                "series %s: %d images, whose numbers run from %g to %g: is it complete?",
                each.uid,
                len(numbers),
                min(numbers),
                max(numbers),
            )


def _check_no_volumes(folder: Path) -> None:
    """Checks that nothing but DICOM could be meant: both readings of a folder are not the same scans."""
    volumes = (
        path for path in files_below(folder, refuse=True) if is_volume(path) and not DERIVED.fullmatch(stem(path))
    )
    if (volume := next(volumes, None)) is not None:
        rule = f"holds DICOM and volumes, for example {volume.relative_to(folder)}: name the folder of either"
        raise InputError([("", str(folder), rule)])


def _uid_of(file: Path) -> str:
    try:
        return read_header(file).series
    except VolumeError as error:
        raise InputError([("", str(file), str(error))]) from error


def _wanted(series: Any) -> list[str]:
    if series is None:
        return []
    parts = series if isinstance(series, list | tuple) else str(series).split(",")
    names = [str(part).strip() for part in parts]
    if not all(re.fullmatch(r"\d[\d.]*", name) for name in names) or len(set(names)) < len(names):
        raise InputError([("", "series", f"must be UIDs or numbers of series, each once, got {series!r}")])
    return names


def _chosen(held: Sequence[Series], wanted: Sequence[str], modality: str) -> list[Series]:
    """Returns the series of a study that make up one volume."""

    def refuse(rule: str) -> NoReturn:
        raise VolumeError("\n    ".join([rule, *(each.describe(modality) for each in held)]))

    if not wanted:
        fitting = [each for each in held if not each.unfit(modality)]
        if len(fitting) == 1:
            return fitting
        single = [each for each in held if each.unfit(modality) == "is one slice"]
        several = " (several, if they are the slices of one stack)" if len(single) > 1 else ""
        what = f"{len(fitting)} series fit" if fitting else "no series fits"
        refuse(f"{what}, choose with series{several}:")
    picked = []
    for name in wanted:
        same = [each for each in held if name in (each.uid, str(each.headers[0].number))]
        if len(same) != 1:
            refuse(f"{len(same) or 'no'} series {'have' if len(same) > 1 else 'has'} the number or UID {name}:")
        if problem := same[0].problem(modality):
            refuse(f"series {name} {problem}:")
        picked += same
    return picked


def _common_folder(picked: Sequence[Series]) -> Path:
    return Path(os.path.commonpath([Path(header.file).parent for each in picked for header in each.headers]))


def _names(places: Sequence[Path], root: Path, chosen: Sequence[Sequence[Series]]) -> list[str]:
    """Returns names of cases, the shortest that tell them apart: the first folder, the path, or with the UID."""
    paths = [place.relative_to(root).parts or (root.name,) for place in places]
    steps: list[Callable[[int], str]] = [
        lambda index: paths[index][0],
        lambda index: "_".join(paths[index]),
        lambda index: "_".join((*paths[index], chosen[index][0].uid)),
    ]
    for step in steps:
        names = [step(index) for index in range(len(paths))]
        if len({name.casefold() for name in names}) == len(names):
            break
    return names


def _case(name: str, picked: Sequence[Series], found: Sequence[Series], phase: int | None) -> dict[str, str]:
    folder = _common_folder(picked)
    inside = [each for each in found if any(folder in Path(header.file).parents for header in each.headers)]
    image = folder
    if len(inside) > 1 or phase is not None:
        numbers = [each.headers[0].number for each in inside]
        short = len(picked) > 1 and all(numbers.count(each.headers[0].number) == 1 for each in picked)
        choice = "+".join(str(each.headers[0].number) if short else each.uid for each in picked)
        image = folder / (choice + ("" if phase is None else f"_phase{phase}"))
    return {"case": name, "image": str(image), "series": "+".join(each.uid for each in picked)}


def series_files(path: str | Path) -> tuple[list[Header], int | None]:
    """Returns the headers of the series that a path of `find_series` means, and the phase.

    Raises:
        VolumeError: when it means none or several.
        InputError: as `find_series`.
    """
    place = Path(path)
    match = None if place.is_dir() else CHOICE.fullmatch(place.name)
    folder = place if match is None else place.parent
    if not folder.is_dir():
        raise VolumeError("is missing")
    held = [each for each in series_below(folder) if each.slices or match is None]
    if match is None:
        if len(held) != 1:
            what = f"{len(held)} series of DICOM" if held else "no series of DICOM"
            raise VolumeError(f"holds {what}")
        return list(held[0].headers), None
    headers: list[Header] = []
    for name in match[1].split("+"):
        same = [each for each in held if name in (each.uid, str(each.headers[0].number))]
        if len(same) != 1:
            raise VolumeError(f"is missing: {len(same) or 'no'} series {name} in {folder}")
        headers += same[0].headers
    return headers, None if match[2] is None else int(match[2])


def read_series(path: Path) -> Nifti1Image | None:
    """Reads the series that a path of `find_series` means; `None` for other paths.

    Returns:
        The volume with axes along rows, columns and slices, the last sorted along their normal; the affine is RAS, mm.

    Raises:
        VolumeError: when slices are missing, uneven, twice or several at one position, differ in size, orientation,
            voxel size or frame of reference, or cannot be read: see `ordered` and `slices.read_voxels`.
    """
    named = CHOICE.fullmatch(path.name) and path.parent.is_dir() and not path.exists()
    if not named and not (path.is_dir() and holds_dicom(path)):
        return None
    try:
        headers, phase = series_files(path)
    except InputError as error:
        raise VolumeError(str(error).partition("\n")[2].strip()) from error
    slices, affine = ordered(headers, phase=phase)
    kinds = {header.dtype for header in headers}
    voxels = read_voxels(slices, size=headers[0].size, dtype=kinds.pop() if len(kinds) == 1 else None)
    image = Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return image


folder_readers.append(read_series)
