"""Which files of a folder are scans, and what they are called; what could be taken for two things is rejected."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .validation import InputError
from .volumes import SUFFIXES

__all__ = ["SUFFIXES", "check_folders", "check_names", "existing_folder", "find_volume", "folders_in", "is_volume"]
__all__ += ["is_of_results", "is_scan", "is_visible", "problem_of_name", "scans_in", "single_scan", "stem", "visible"]

logger = logging.getLogger(__name__)

LONGEST = 200  # bytes of a case's name: file systems take 255, endings need some
# What systems and programs leave beside files; hidden entries and those of Synology (`@eaDir`) start as no scan does.
STRAY = {"__macosx", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "system volume information", "#recycle"}
# How names of label maps end, and of what a bundle of this collection writes beside scans.
DERIVED = re.compile(
    r"(.+?)[_-](seg|segmentation|gt|label|labels|mask|atrium|tumour|unc_(?:spread|enhance|core|whole)|probabilities|soft"
    r"|spread|disagreement)(?:_previous)?",
    re.IGNORECASE,
)

Problem = tuple[str, str, str]


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden entries (`._X_t1.nii.gz`) and what systems leave (`__MACOSX`).

    Raises:
        InputError: when the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
        for path in entries[:1]:
            path.lstat()  # what may be listed need not be opened
    except OSError as error:
        raise InputError([("", str(folder), f"cannot be listed ({error.strerror})")]) from error
    return [path for path in entries if is_visible(path.name)]


def is_visible(name: str) -> bool:
    """Whether a name is neither hidden nor one that systems leave."""
    return not name.startswith((".", "@")) and name.lower() not in STRAY


def existing_folder(folder: str | Path, name: str = "dataset_dir") -> Path:
    """Returns the absolute path of a folder.

    Raises:
        InputError: when it does not exist, is no folder or cannot be read.
    """
    path = Path(folder).absolute()  # the first import of itk changes the working directory for a moment
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise InputError([("", str(path), f"{name} cannot be read ({error})")]) from error
    if not path.is_dir():
        raise InputError([("", str(path), f"{name} does not exist or is no folder")])
    return path.resolve() if path.name in ("", "..") else path


def folders_in(root: Path) -> list[Path]:
    """The visible folders in `root`, sorted, without those of results, which hold the record of a run and no scan.

    Raises:
        InputError: when `root` cannot be read, or a link in it leads nowhere.
    """
    return [path for path in _reachable(root) if path.is_dir() and not is_of_results(path)]


def is_of_results(folder: Path) -> bool:
    """Whether a folder holds the record of a run and no scan."""
    return not any(map(is_scan, folder.glob("*"))) and any(folder.glob("run_*_*.json"))


def check_folders(folders: Iterable[Path], cases: Collection[Path]) -> None:
    """Checks that all folders are cases if some are: a case without its scan must not go unnoticed.

    Args:
        folders: beside each other.
        cases: those of them with what makes a case.

    Raises:
        InputError: naming the others.
    """
    rule = "holds no scan, other than the folders beside it: complete it, or move it elsewhere"
    if cases and (others := [folder for folder in folders if folder not in cases]):
        raise InputError((folder.name, str(folder), rule) for folder in others)


def _reachable(root: Path) -> list[Path]:
    entries = visible(root)
    if lost := [path for path in entries if path.is_symlink() and not path.exists()]:
        raise InputError((stem(path), str(path), "is a link that leads nowhere") for path in lost)
    return entries


def is_volume(path: Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether a file's name ends as those of volumes do, in small or capital letters."""
    return path.name.lower().endswith(tuple(suffixes))


def is_scan(path: Path) -> bool:
    """Whether a file's name is that of a volume, and none of a label map or a result."""
    return is_volume(path) and not DERIVED.fullmatch(stem(path))


def stem(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    """Returns a file's name without a known suffix, and with all other dots: `1.2.840.113` of `1.2.840.113.nii.gz`."""
    name = Path(path).name
    known = [suffix for suffix in suffixes if name.lower().endswith(suffix)]
    return name[: -max(map(len, known))] if known else name


def find_volume(folder: Path, name: str, *, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """Returns the file `name` with a known suffix in a folder, whether a link of that name leads anywhere or not.

    Raises:
        InputError: when there are several, or the folder cannot be read.
    """
    wanted = {(name + suffix).lower() for suffix in suffixes}
    found = [path for path in visible(folder) if path.name.lower() in wanted and not path.is_dir()]
    if len(found) > 1:
        raise InputError([_ambiguous(folder.name, found)])
    return found[0] if found else None


def _ambiguous(case: str, files: Sequence[Path]) -> Problem:
    return case, str(files[0].parent), f"is ambiguous: {' or '.join(path.name for path in files)}? Keep one"


def scans_in(root: Path, *, suffixes: Sequence[str] = SUFFIXES, others: Collection[str] = ()) -> list[Path]:
    """The volumes in a folder that are scans, sorted; a line in the log names what is passed over.

    A label map or a result (`P1_seg`, `P1_atrium`) is no scan, if the scan that it belongs to lies beside it.

    Args:
        root: the folder.
        suffixes: of scans.
        others: names of further scans, of several files each, to which results may belong.

    Raises:
        InputError: when two files differ in nothing but their suffix, a result is without its scan, or as `folders_in`.
    """
    files = [path for path in _reachable(root) if path.is_file()]
    volumes = [path for path in files if is_volume(path, suffixes)]
    derived = _derived(volumes, suffixes, others=others)
    scans = [path for path in volumes if path not in derived]
    _check_alike(scans, suffixes)
    _log_passed(root, files, scans)
    return scans


def _derived(volumes: Sequence[Path], suffixes: Sequence[str], *, others: Iterable[str]) -> set[Path]:
    """The volumes that are label maps or results, each of which must have its scan."""
    names = {name.casefold() for path in volumes for name in _names(path, suffixes)} | {*map(str.casefold, others)}
    derived = {path: match for path in volumes if (match := DERIVED.fullmatch(stem(path, suffixes)))}
    if alone := [path for path, match in derived.items() if match[1].casefold() not in names]:
        rule = "is called as a label map or a result, and its scan is not there: move it elsewhere, or rename it"
        raise InputError((stem(path, suffixes), str(path), rule) for path in alone)
    return set(derived)


def _check_alike(scans: Iterable[Path], suffixes: Sequence[str]) -> None:
    same: dict[str, list[Path]] = {}
    for path in scans:
        same.setdefault(stem(path, suffixes).casefold(), []).append(path)
    if problems := [_ambiguous(stem(paths[0], suffixes), paths) for paths in same.values() if len(paths) > 1]:
        raise InputError(problems)


def _log_passed(root: Path, files: Iterable[Path], scans: Iterable[Path]) -> None:
    if passed := sorted({path.name for path in files} - {path.name for path in scans}):
        logger.info("%s: no scans, passed over: %s", root, ", ".join(passed[:20]) + (" ..." if passed[20:] else ""))


def _names(path: Path, suffixes: Sequence[str]) -> Iterator[str]:
    """Yields what the results of a scan may start with: MONAI's writers keep a part of `.NII.GZ`."""
    yield stem(path, suffixes)
    yield path.stem


def single_scan(
    dataset_dir: str | Path, *, suffixes: Sequence[str] = SUFFIXES, others: Collection[str] = ()
) -> Path | None:
    """Returns the absolute path of a file that was given as the only scan, `None` for a folder or nothing.

    Args:
        dataset_dir: the file.
        suffixes: of scans.
        others: see `scans_in`.

    Raises:
        InputError: when its suffix is none of a scan, or it is a label map or a result that lies beside its scan.
    """
    path = Path(dataset_dir).absolute()
    if not os.path.isfile(path):  # noqa: PTH113  # which raises when a folder above cannot be read
        return None
    if not is_volume(path, suffixes):
        rule = f"is no scan, which ends in {', '.join(suffixes)}: convert others first, series of DICOM with dcm2niix"
        raise InputError([("", str(path), rule)])
    match = DERIVED.fullmatch(stem(path, suffixes))
    beside = {name.casefold() for other in visible(path.parent) for name in _names(other, suffixes)}
    beside |= {name.casefold() for name in others}
    if match and match[1].casefold() in beside:
        raise InputError([(match[1], str(path), "is a label map or a result of the scan beside it, no scan")])
    return path


def problem_of_name(name: Any) -> str | None:
    """Returns what keeps a case's name from being that of a file, if anything."""
    if not isinstance(name, str):
        return f"a case's name must be text, not {name!r:.60}"
    plain = name not in ("", ".", "..") and not any(sign in '/\\:*?"<>|' for sign in name) and name == name.strip()
    if not plain or any(unicodedata.category(sign).startswith("C") for sign in name):
        return "a case's name must be that of a file: not empty, no path, no control or other special character"
    length = len(name.encode())
    return f"a case's name may have {LONGEST} bytes, this one has {length}" if length > LONGEST else None


def check_names(cases: Iterable[Mapping[str, Any]], *, source: str | Path | None = None) -> None:
    """Checks that cases have names of which files can be made, each its own, and do not share an image.

    Args:
        cases: cases `{"case", "image"}`.
        source: the file that names them; by default a problem names the image.

    Raises:
        InputError: when a name is no plain one, two names are the same or differ in nothing but capital letters, or two
            cases have one file, if by links.
    """
    problems: list[Problem] = []
    names: dict[str, Mapping[str, Any]] = {}
    files: dict[tuple[int, int], Mapping[str, Any]] = {}
    for case in cases:
        name, place = case["case"], str(source or case["image"])
        if problem := problem_of_name(name):
            problems.append((f"{name!r:.60}", repr(place)[1:-1], problem))
            continue
        other = names.setdefault(unicodedata.normalize("NFC", name).casefold(), case)
        if other is not case:
            rule = "two cases have this name" if other["case"] == name else f"differs from {other['case']} only in case"
            problems.append((name, place, f"{rule}, results of one would replace the other's: {other['image']}"))
        elif (file := _identity(case["image"])) and (same := files.setdefault(file, case)) is not case:
            problems.append((name, str(case["image"]), f"is the same file as that of case {same['case']}"))
    if problems:
        raise InputError(problems)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is the same of two paths to one file; `None` where it cannot be read, which other checks tell."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
