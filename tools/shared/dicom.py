"""Series of DICOM as scans: which of a folder are meant, and their slices as one volume, or why they are none."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nibabel.nifti1 import Nifti1Image

from .planes import ordered, read_voxels
from .scans import is_scan
from .series import Series, files_below, holds_dicom, series_below
from .slices import Header, read_header
from .validation import InputError
from .volumes import VolumeError, folder_readers

__all__ = ["dicom_scans", "find_series", "read_series", "series_files"]

logger = logging.getLogger(__name__)

# The last part of a path that is none of a file: UIDs or numbers of series, and which of the images at each position.
CHOICE = re.compile(r"(\d[\d.]*(?:\+\d[\d.]*)*)(?:_phase(\d+))?")


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
    if phase is not None and (not isinstance(phase, int) or phase < 0):  # type: ignore[redundant-expr]  # as typed
        raise InputError([("", "phase", f"must be a whole number from 0, got {phase!r}")])
    folder, wanted = _place_and_names(Path(root).absolute(), series)
    found = series_below(folder)
    chosen = _chosen(found, wanted, modality, folder=folder)
    for each in (each for picked in chosen for each in picked):
        _warn_of_gaps(each)
    names = _names([_common_folder(picked) for picked in chosen], folder, chosen)
    cases = [_case(name, picked, found, phase) for name, picked in zip(names, chosen, strict=True)]
    return sorted(cases, key=lambda case: case["case"])


def _place_and_names(place: Path, series: Any) -> tuple[Path, list[str]]:
    """Returns the folder to look in, in which nothing but DICOM may be meant, and UIDs or numbers of series, if any."""
    if place.is_file():
        if series is not None:
            rule = "is one file, whose series is meant: give its folder to choose another"
            raise InputError([("", str(place), rule)])
        return place.parent, [_uid_of(place)]
    wanted = _wanted(series)
    if (volume := next(filter(is_scan, files_below(place, refuse=True)), None)) is not None:
        rule = f"holds DICOM and volumes, for example {volume.relative_to(place)}: name the folder of either"
        raise InputError([("", str(place), rule)])
    return place, wanted


def _warn_of_gaps(series: Series) -> None:
    """Warns where numbers of images are left out: the geometry does not tell if the missing ones lie at an end."""
    numbers = {number for piece in series.slices if (number := piece.order[-1]) is not None}
    whole = int(max(numbers)) - int(min(numbers)) + 1 if numbers else 0
    if len(numbers) == len(series.slices) < whole:
        told = "series %s: %d images, whose numbers run from %g to %g: is it complete?"
        logger.warning(told, series.uid, len(numbers), min(numbers), max(numbers))


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


def _chosen(found: Sequence[Series], wanted: Sequence[str], modality: str, *, folder: Path) -> list[list[Series]]:
    """Returns for every study the series that make up one volume."""
    if not found:
        raise InputError([("", str(folder), "holds no series of DICOM")])
    chosen, problems = [], []
    for study, held in _studies(found, wanted).items():
        try:
            chosen.append(_called(held, wanted, modality) if wanted else [_only_that_fits(held, modality)])
        except VolumeError as error:
            lines = [f"study {study}: {error}", *(each.describe(modality) for each in held)]
            problems.append(("", str(folder), "\n    ".join(lines)))
    if problems:
        raise InputError(problems)
    return chosen


def _studies(found: Sequence[Series], wanted: Sequence[str]) -> dict[str, list[Series]]:
    """Returns the series of each study, of those only that hold a wanted UID, if any does; all may hold a number."""
    named = {each.study for each in found if each.uid in wanted}
    studies: dict[str, list[Series]] = {}
    for each in found:
        if not named or each.study in named:
            studies.setdefault(each.study, []).append(each)
    return studies


def _only_that_fits(held: Sequence[Series], modality: str) -> Series:
    unfit = [each.unfit(modality) for each in held]
    if unfit.count("") == 1:
        return held[unfit.index("")]
    several = " (several, if they are the slices of one stack)" if unfit.count("is one slice") > 1 else ""
    what = f"{unfit.count('')} series fit" if "" in unfit else "no series fits"
    raise VolumeError(f"{what}, choose with series{several}:")


def _called(held: Sequence[Series], wanted: Sequence[str], modality: str) -> list[Series]:
    picked = []
    for name in wanted:
        same = [each for each in held if each.is_called(name)]
        if len(same) != 1:
            what = f"{len(same)} series have" if same else "no series has"
            raise VolumeError(f"{what} the number or UID {name}:")
        if problem := same[0].problem(modality):
            raise VolumeError(f"series {name} {problem}:")
        picked += same
    return picked


def _common_folder(picked: Sequence[Series]) -> Path:
    return Path(os.path.commonpath([Path(header.file).parent for each in picked for header in each.headers]))


def _names(places: Sequence[Path], root: Path, chosen: Sequence[Sequence[Series]]) -> list[str]:
    """Returns names of cases, the shortest that tell them apart: the first folder, the path, or with the UID."""
    paths = [place.relative_to(root).parts or (root.name,) for place in places]
    steps = (
        [parts[0] for parts in paths],
        ["_".join(parts) for parts in paths],
        ["_".join((*parts, picked[0].uid)) for parts, picked in zip(paths, chosen, strict=True)],
    )
    return next((names for names in steps if len({name.casefold() for name in names}) == len(names)), steps[-1])


def _case(name: str, picked: Sequence[Series], found: Sequence[Series], phase: int | None) -> dict[str, str]:
    image = _common_folder(picked)
    inside = [each for each in found if any(image in Path(header.file).parents for header in each.headers)]
    if len(inside) > 1 or phase is not None:
        image /= _choice(picked, inside) + ("" if phase is None else f"_phase{phase}")
    return {"case": name, "image": str(image), "series": "+".join(each.uid for each in picked)}


def _choice(picked: Sequence[Series], inside: Sequence[Series]) -> str:
    """Returns the UID of a series, of several their numbers, if no others in the folder have them: UIDs are long."""
    numbers = [str(each.number) for each in inside]
    own = [str(each.number) for each in picked]
    short = len(own) > 1 and all(number.isdigit() and numbers.count(number) == 1 for number in own)
    return "+".join(own if short else [each.uid for each in picked])


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
    held = series_below(folder)
    if match is not None:
        names, phase = match.groups()
        return _headers_of(names.split("+"), held, folder=folder), None if phase is None else int(phase)
    if len(held) != 1:
        raise VolumeError(f"holds {len(held) or 'no'} series of DICOM")
    return list(held[0].headers), None


def _headers_of(names: Sequence[str], held: Sequence[Series], *, folder: Path) -> list[Header]:
    headers: list[Header] = []
    for name in names:
        same = [each for each in held if each.slices and each.is_called(name)]
        if len(same) != 1:
            raise VolumeError(f"is missing: {len(same) or 'no'} series {name} in {folder}")
        headers += same[0].headers
    return headers


def read_series(path: Path) -> Nifti1Image | None:
    """Reads the series that a path of `find_series` means; `None` for other paths.

    Returns:
        The volume with axes along rows, columns and slices, the last sorted along their normal; the affine is RAS, mm.

    Raises:
        VolumeError: when slices are missing, uneven, twice or several at one position, differ in size, orientation,
            voxel size or frame of reference, or cannot be read: see `planes`.
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
