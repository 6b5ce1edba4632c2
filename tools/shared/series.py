"""Which series of DICOM images lie in a folder, and what each of them is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from .scans import is_of_results, is_visible, is_volume
from .slices import Header, Slice, is_dicom, pydicom_module, read_header
from .validation import InputError
from .volumes import VolumeError

__all__ = ["Series", "files_below", "holds_dicom", "series_below"]

SUFFIXES = (".dcm", ".ima")  # which files of DICOM need not have
LOCALIZER = re.compile(r"\b(loc|localizers?|localisers?|scouts?|topograms?|surview|survey)\b", re.IGNORECASE)


class Series(NamedTuple):
    """The files of a series in a folder."""

    study: str
    uid: str
    headers: tuple[Header, ...]

    def problem(self, modality: str) -> str:
        """Returns why it is no scan of this modality, nothing if it may be."""
        if self.headers[0].modality != modality:
            return f"is {self.headers[0].modality or 'of no modality'}"
        return next((header.problem for header in self.headers if header.problem), "")

    def unfit(self, modality: str) -> str:
        """Returns why it is not taken unless it is asked for, nothing if it is."""
        if problem := self.problem(modality):
            return problem
        kinds = {kind for piece in self.slices for kind in piece.kind}
        if "LOCALIZER" in kinds or LOCALIZER.search(self.headers[0].description.replace("_", " ")):
            return "is a localizer"
        return "" if self.positions > 1 else "is one slice"

    @property
    def number(self) -> int | None:
        """Its number, if it has one."""
        return self.headers[0].number

    @property
    def slices(self) -> list[Slice]:
        """Its images."""
        return [piece for header in self.headers for piece in header.slices]

    @property
    def positions(self) -> int:
        """At how many places its images lie."""
        return len({piece.position for piece in self.slices})

    def is_called(self, name: str) -> bool:
        """Whether this is its UID or its number."""
        return name in (self.uid, str(self.number))

    def describe(self, modality: str) -> str:
        """Returns a line of a list: number, what it is, size, UID."""
        header, rows, columns = self.headers[0], *self.headers[0].size
        number = "-" if self.number is None else self.number
        images = f"{len(self.slices)} images of {columns}x{rows} at {self.positions} positions"
        state = self.unfit(modality) or "fits"
        return f"series {number}: {header.modality}, {header.description!r}, {images}, {self.uid}: {state}"


def files_below(root: Path, *, refuse: bool) -> Iterator[Path]:
    """Yields the visible files below a folder; what cannot be listed is rejected, or passed over."""
    for folder, names in _folders_below(root, refuse=refuse):
        for path in (folder / name for name in sorted(filter(is_visible, names))):
            if path.is_file():
                yield path
            elif refuse and path.is_symlink():
                raise InputError([("", str(path), "is a link that leads nowhere")])


def _folders_below(root: Path, *, refuse: bool) -> Iterator[tuple[Path, list[str]]]:
    """Yields a folder and those below, without results, with what else lies in them; links may lead in circles."""

    def fail(error: OSError) -> None:
        if refuse:
            raise InputError([("", str(error.filename), f"cannot be listed ({error.strerror})")]) from error

    seen = set()
    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        folder, real = Path(place), os.path.realpath(place)
        if real in seen or (folder != root and is_of_results(folder)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_visible, folders))
        yield folder, names


def holds_dicom(path: str | Path) -> bool:
    """Returns whether a file is DICOM, or a folder has such a file anywhere in it; the packages are not needed."""
    files: Iterable[Path] = [Path(path)] if os.path.isfile(path) else files_below(Path(path), refuse=False)  # noqa: PTH113
    return any(is_dicom(file) for file in files if not is_volume(file))


def series_below(folder: Path) -> list[Series]:
    """Returns every series in a folder, in the order of their numbers.

    Raises:
        InputError: when the folder cannot be listed, pydicom is not installed, or files are named as DICOM is
            and are none, or cannot be read.
    """
    files = list(filter(_may_be_image, files_below(folder, refuse=True)))
    try:
        pydicom_module()
    except VolumeError as error:
        raise InputError([("", str(folder), str(error))]) from error
    groups: dict[tuple[str, str], list[Header]] = {}
    problems = []
    for path in tqdm(files, "Reading DICOM headers", unit="file", delay=3):
        try:
            header = read_header(path)
        except VolumeError as error:
            problems.append(("", str(path), str(error)))
        else:
            groups.setdefault((header.study, header.series), []).append(header)
    if problems:
        raise InputError(problems)
    found = [Series(study, uid, tuple(headers)) for (study, uid), headers in groups.items()]
    return sorted(found, key=lambda each: (each.study, each.number or 0, each.uid))


def _may_be_image(path: Path) -> bool:
    """Whether a file is DICOM, or called so; not the index of a disc."""
    return path.name.upper() != "DICOMDIR" and (path.suffix.lower() in SUFFIXES or is_dicom(path))
