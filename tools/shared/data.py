"""Where the scans lie: BraTS folders of any year, sequences beside each other, volumes of all, described data sets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from .datasets import Described, described, is_list, root_of_list
from .lists import SPLITS, read_split_file
from .naming import CHANNELS, CLASSES, ENDINGS, SUFFIX, beginning_of, channel_files, pattern_of
from .patients import by_patient, check_patients, draw, expanded
from .scans import check_folders, check_names, existing_folder, folders_in, scans_in, single_scan, stem, visible
from .validation import InputError

__all__ = ["evaluation_cases", "find_scans", "read_split", "root_folder", "sequence_files"]

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii")
ORDER = ("NCR", "ED", "ET", "ET")

Case = dict[str, Any]


def _find(folder: Path, sequence: str, beginning: str | None = None) -> Path:
    """The file of a sequence in a folder, or where the challenge would have put it.

    Raises:
        InputError: when several files could be it.
    """
    start = r"(?:.*[_-])?" if beginning is None else re.escape(beginning)
    wanted = re.compile(rf"{start}(?:{pattern_of(sequence)}){SUFFIX}", re.IGNORECASE)
    found = [path for path in visible(folder) if wanted.fullmatch(path.name)] if folder.is_dir() else []
    if len(found) > 1:
        names = " or ".join(path.name for path in found)
        raise InputError([(folder.name, str(folder), f"{sequence} is ambiguous: {names}?")])
    start = f"{folder.name}_" if beginning is None else beginning
    return found[0] if found else folder / f"{start}{ENDINGS.get(sequence, (sequence,))[0]}.nii.gz"


def sequence_files(image: str | Path, sequences: Sequence[str]) -> dict[str, Path] | None:
    """Finds the sequences of a scan beside one of its files.

    Args:
        image: file of any sequence, for example `BraTS19_X_1_flair.nii.gz` or `BraTS-GLI-00001-000-t2f.nii.gz`.
        sequences: those that are wanted.

    Returns:
        Path by sequence, whether there is such a file or not; `None` when the name of `image` ends in no sequence, nor
        in the number of a channel of the data set that it lies in: then it is one volume of them all.

    Raises:
        InputError: when several files could be one sequence, or one file, by links, is two.
    """
    path = Path(image).absolute()
    files = channel_files(path, sequences)
    if files is None:
        beginning = beginning_of(path, [*ENDINGS, *sequences])
        if beginning is None:
            return None
        files = {name: _find(path.parent, name, beginning) for name in sequences}
    last = {file.resolve(): name for name, file in files.items()}
    if twice := [name for name, file in files.items() if last[file.resolve()] != name]:
        raise InputError((path.parent.name, str(files[name]), "is the file of another sequence too") for name in twice)
    return files


def _is_case(folder: Path, sequences: Sequence[str]) -> bool:
    return any(beginning_of(path, sequences) is not None for path in visible(folder) if not path.is_dir())


def _case_folders(root: Path, sequences: Sequence[str]) -> dict[str, Path]:
    """Folders of cases below `root`, or below its folders of grades (`HGG`, `LGG`), by name."""
    found: dict[str, Path] = {}
    for entry in folders_in(root):
        inner = [] if _is_case(entry, sequences) else folders_in(entry)
        for folder in inner if any(_is_case(path, sequences) for path in inner) else [entry]:
            if found.setdefault(folder.name, folder) != folder:
                raise InputError([(folder.name, str(folder), f"the case is in {found[folder.name]} too")])
    return found


def _case(folder: Path, sequences: Sequence[str]) -> Case:
    """One case: the files of its first sequence and of its label; the other sequences lie beside."""
    image, label = (str(_find(folder, name)) for name in (sequences[0], "label"))
    return {"case": folder.name, "image": image, "label": label}


def _described(
    dataset_dir: str | Path, sequences: Sequence[str], label_order: Sequence[str] | None
) -> Described | None:
    return described(
        dataset_dir,
        is_case=lambda folder: _is_case(folder, sequences) or any(_is_case(f, sequences) for f in folders_in(folder)),
        sequences=sequences,
        names=CHANNELS,
        labelled=label_order is not None,
        classes=None if label_order is None else {name: label_order.index(name) + 1 for name in label_order},
        synonyms=CLASSES,
    )


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    sequences: Sequence[str],
    label_order: Sequence[str] = ORDER,
    validation: float = 0.2,
    seed: int = 123,
) -> dict[str, list[Case]]:
    """Lists the labelled cases of a data set by split; a line in the log says as what it was read.

    Args:
        dataset_dir: `<dataset_dir>/[HGG|LGG/]<case>/<case>_{flair,t1ce,t1,t2,seg}.nii.gz`, or with the endings of 2023
            `-t2f`, `-t1c`, `-t1n`, `-t2w`, `-seg`; what stands before the ending may be missing. Or a data set that
            describes itself, see `datasets.described`, with these sequences in any order.
        split_file: JSON file with lists of case names under `training`, `validation` and, if wanted, `test`, see
            `lists.read_split_file`; without one, the patients of each grade are drawn, see `patients.draw`.
        sequences: those of the scans; a case is known by the first.
        label_order: classes of the values 1, 2, ... of label maps; a described data set may have others.
        validation: fraction of the patients for validation, when there is no file.
        seed: seed of the shuffle, when there is no file.

    Returns:
        `{"training": cases, "validation": cases, "test": cases}`, a case being `{"case", "image", "label"}` with the
        file of the first sequence.

    Raises:
        InputError: when the folder or the split file does not exist, there are too few patients, a case lies in two
            folders or has two files for one sequence, the split file is damaged, names a case twice or one without
            folder, or divides a patient, or as `datasets.described`.
    """
    if (listed := _described(dataset_dir, sequences, label_order)) is not None:
        return listed.split(split_file, validation=validation, seed=seed)
    root = existing_folder(dataset_dir)
    folders = _case_folders(root, sequences)
    logger.info("%s: read as %d folders of cases of BraTS", root, len(folders))
    if split_file is None:
        named = _drawn(folders, root, sequences, validation=validation, seed=seed)
    else:
        named = read_split_file(split_file)
        check_patients(named, source=split_file)
    every = chain.from_iterable(named[split] for split in SPLITS)
    if absent := [(name, str(root / name), "has no folder") for name in every if name not in folders]:
        raise InputError(absent)
    cases = {split: [_case(folders[name], sequences) for name in named[split]] for split in SPLITS}
    check_names(chain.from_iterable(cases.values()))
    return cases


def _drawn(
    folders: Mapping[str, Path], root: Path, sequences: Sequence[str], *, validation: float, seed: int
) -> dict[str, list[str]]:
    groups = by_patient(list(folders))
    if len(groups) < 2:
        raise InputError([("", str(root), f"needs the folders of two patients or more, holds {len(groups)}")])
    check_folders(folders.values(), [path for path in folders.values() if _is_case(path, [*sequences, "label"])])
    grades = {name: folders[name].parent.name for name in groups}
    return expanded(draw(grades, validation=validation, seed=seed), groups)


def evaluation_cases(cases: Mapping[str, list[Case]], subset: str | None = None) -> list[Case]:
    """Returns the cases of a split, by default of `test`, or of `validation` where there are no test cases.

    Raises:
        InputError: when there is no such split.
    """
    subset = subset or ("test" if cases["test"] else "validation")
    if subset not in SPLITS:
        raise InputError([("", "subset", f"must be one of {', '.join(SPLITS)}, got {subset}")])
    return cases[subset]


def find_scans(dataset_dir: str | Path, *, sequences: Sequence[str]) -> list[Case]:
    """Lists the scans to segment.

    Args:
        dataset_dir: a folder of cases as for `read_split`, the folder of one case, a file, or a folder of files: of
            sequences side by side, or volumes of all of them, see `scans.scans_in`; or a data set that describes
            itself, see `datasets.described`.
        sequences: those that are needed.

    Returns:
        Cases `{"case", "image"}`, sorted by name.

    Raises:
        InputError: when `dataset_dir` does not exist or holds no NIfTI volume, a file of another format is given, a
            folder beside those of cases holds no scan, two files could be one scan or sequence, or two cases have one
            name.
    """
    path = Path(dataset_dir).absolute()
    if (listed := _described(path, sequences, None)) is not None:
        return listed.scans()
    if single_scan(path, suffixes=SUFFIXES) is not None:
        single_scan(path, suffixes=SUFFIXES, others=_starts(path.parent, sequences))
        return [_scan(path, [name for name in (*ENDINGS, *sequences) if name != "label"])]
    root = existing_folder(dataset_dir)
    cases = _scans_of(root, sequences)
    if not cases:
        raise InputError([("", str(root), f"holds neither cases with {', '.join(sequences)} nor a volume *.nii.gz")])
    check_names(cases)
    return cases


def _scans_of(root: Path, sequences: Sequence[str]) -> list[Case]:
    """The cases below a folder, those in it, and its volumes of all sequences."""
    folders = _case_folders(root, sequences).values()
    found = [folder for folder in folders if _is_case(folder, sequences)]
    check_folders(folders, found)
    found += [root] if _is_case(root, sequences) else []
    cases = list(chain.from_iterable(_scans_beside(folder, sequences) for folder in found))
    others = {case["case"] for case in cases} | _starts(root, sequences)
    volumes = _volumes(root, sequences, others)
    logger.info("%s: read as %d cases of BraTS and %d volumes", root, len(cases), len(volumes))
    return cases + [_scan(path, sequences) for path in volumes]


def _volumes(root: Path, sequences: Sequence[str], others: set[str]) -> list[Path]:
    """The volumes in a folder that are no single sequence."""
    every = [*ENDINGS, *sequences]
    return [path for path in scans_in(root, suffixes=SUFFIXES, others=others) if beginning_of(path, every) is None]


def _starts(folder: Path, sequences: Sequence[str]) -> set[str]:
    """Names of the scans whose sequences lie side by side in a folder, to which results and labels may belong."""
    names = [name for name in (*ENDINGS, *sequences) if name != "label"]
    found = {beginning_of(path, names) for path in (visible(folder) if folder.is_dir() else [])}
    return {start.rstrip("_-") for start in found if start is not None} | ({folder.name} if found - {None} else set())


def _scans_beside(folder: Path, sequences: Sequence[str]) -> Iterator[Case]:
    """The cases in one folder, told apart by what stands before the names of the sequences."""
    found = {beginning_of(path, sequences) for path in visible(folder)}
    beginnings = sorted(beginning for beginning in found if beginning is not None)
    for beginning in beginnings:
        case = folder.name if len(beginnings) == 1 else beginning.rstrip("_-")
        yield {"case": case, "image": str(_find(folder, sequences[0], beginning))}


def _scan(path: Path, sequences: Sequence[str]) -> Case:
    beginning = beginning_of(path, sequences)
    name = stem(path, SUFFIXES) if beginning is None else beginning.rstrip("_-") or path.parent.name
    if channel_files(path, ()) is not None:
        name = stem(path)[: -len("_0000")]
    return {"case": name, "image": str(path)}


def root_folder(dataset_dir: str | Path) -> str:
    """Returns `dataset_dir`, or the folder of a file or of a list's scans; results keep their place below it."""
    root = Path(dataset_dir).absolute()
    if is_list(root):
        return str(root_of_list(root))
    return str(root.parent if root.is_file() else root)
