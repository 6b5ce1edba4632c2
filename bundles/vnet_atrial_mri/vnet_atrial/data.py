"""Where the scans lie: the folders of the 2018 atrial challenge, flat folders, described data sets, and splits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from .shared.datasets import Described, described, is_list, root_of_list
from .shared.dicom import dicom_scans
from .shared.lists import read_split_file
from .shared.patients import by_patient, check_patients, draw, expanded
from .shared.scans import (
    check_folders,
    check_names,
    existing_folder,
    find_volume,
    folders_in,
    scans_in,
    single_scan,
    stem,
)
from .shared.validation import InputError

__all__ = ["find_images", "read_split", "root_folder"]

logger = logging.getLogger(__name__)

SUFFIXES = (".nrrd", ".nii.gz", ".nii")
SPLITS = ("training", "validation")
CLASSES = {"left atrium": 1}
SYNONYMS = {"left atrium": ("LA", "atrium", "left atrial cavity", "LA cavity", "laendo")}


def _volume(folder: Path, name: str) -> str:
    """Returns the path of `name` with the known suffix that it has, else with the challenge's."""
    return str(find_volume(folder, name, suffixes=SUFFIXES) or folder / (name + SUFFIXES[0]))


def _described(dataset_dir: str | Path, *, image: str, labelled: bool) -> Described | None:
    return described(
        dataset_dir,
        is_case=lambda folder: find_volume(folder, image) is not None,
        labelled=labelled,
        classes=CLASSES,
        synonyms=SYNONYMS,
    )


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    image: str = "lgemri",
    label: str = "laendo",
    validation: float = 0.2,
    seed: int = 123,
) -> dict[str, list[dict[str, Any]]]:
    """Lists the labelled cases of a data set by split; a line in the log says as what it was read.

    Args:
        dataset_dir: a folder of `<case>/{lgemri,laendo}.{nrrd,nii.gz,nii}`, or a data set that describes itself, see
            `datasets.described`, with one class, the left atrium.
        split_file: JSON file with lists of case names, see `lists.read_split_file`; without one, patients are drawn,
            see `patients.draw`.
        image: file name of the scans without suffix.
        label: file name of the label maps without suffix.
        validation: fraction of the patients for validation, when there is no file.
        seed: seed of the shuffle, when there is no file.

    Returns:
        `{"training": cases, "validation": cases}`, a case being `{"case", "image", "label"}`.

    Raises:
        InputError: when the folder does not exist or has two files for an image or a label, there are fewer than two
            patients, the split file is damaged, names a case twice or one that has no folder, or divides a patient, or
            as `datasets.described`.
    """
    if (found := _described(dataset_dir, image=image, labelled=True)) is not None:
        split = found.split(split_file, validation=validation, seed=seed)
        return {name: split[name] for name in SPLITS}
    root = existing_folder(dataset_dir)
    folders = {folder.name: folder for folder in folders_in(root)}
    logger.info("%s: read as %d folders <case>/%s.* and %s.*", root, len(folders), image, label)
    if split_file is not None:
        named = read_split_file(split_file)
        check_patients(named, source=split_file)
    else:
        named = _drawn(list(folders), root, validation=validation, seed=seed)
        _check_all(folders.values(), image=image, label=label)
    _check_there([*named["training"], *named["validation"]], folders, root)
    cases = {split: [_case(folders[name], image=image, label=label) for name in named[split]] for split in SPLITS}
    check_names(chain.from_iterable(cases.values()))
    return cases


def _check_there(names: Sequence[str], folders: Collection[str], root: Path) -> None:
    if absent := [(name, str(root / name), "has no folder") for name in names if name not in folders]:
        raise InputError(absent)


def _check_all(folders: Collection[Path], *, image: str, label: str) -> None:
    check_folders(folders, [folder for folder in folders if find_volume(folder, image) or find_volume(folder, label)])


def _case(folder: Path, *, image: str, label: str) -> dict[str, Any]:
    return {"case": folder.name, "image": _volume(folder, image), "label": _volume(folder, label)}


def _drawn(names: list[str], root: Path, *, validation: float, seed: int) -> dict[str, list[str]]:
    groups = by_patient(names)
    if len(groups) < 2:
        raise InputError([("", str(root), f"needs the folders of two patients or more, holds {len(groups)}")])
    return expanded(draw(dict.fromkeys(groups, ""), validation=validation, seed=seed), groups)


def find_images(
    dataset_dir: str | Path, *, image: str = "lgemri", series: Any = None, phase: int | None = None
) -> list[dict[str, Any]]:
    """Lists the scans to segment: a file, case folders or one, a folder of volumes, a described data set, or DICOM.

    Args:
        dataset_dir: a volume, a folder of `<case>/lgemri.*`, such a case, a folder of volumes, see `scans.scans_in`,
            a data set that describes itself, see `datasets.described`, or a file or folder of MR series.
        image: file name of the scans without suffix, in case folders.
        series: UID or number of the series of DICOM to segment, see `dicom.find_series`.
        phase: which of several DICOM images at each position.

    Returns:
        Cases `{"case", "image"}`, sorted by name; with `series` where they are DICOM.

    Raises:
        InputError: when `dataset_dir` does not exist or holds no NRRD or NIfTI volume, a file of another format is
            given, a folder beside those of cases holds no scan, two files could be one scan, two cases have one name,
            or as `dicom.find_series`.
    """
    if (scans := dicom_scans(dataset_dir, modality="MR", series=series, phase=phase)) is not None:
        return scans
    if (listed := _described(dataset_dir, image=image, labelled=False)) is not None:
        return sorted(listed.scans(), key=lambda case: case["case"])
    if (alone := single_scan(dataset_dir)) is not None:
        name = stem(alone)
        return [{"case": alone.parent.name if name.lower() == image else name, "image": str(alone)}]
    root = existing_folder(dataset_dir)
    cases = _scans_of(root, image)
    if not cases:
        raise InputError([("", str(root), f"holds neither <case>/{image}.* nor a volume {' '.join(SUFFIXES)}")])
    check_names(cases)
    return sorted(cases, key=lambda case: case["case"])


def _scans_of(root: Path, image: str) -> list[dict[str, Any]]:
    """Lists the scans of case folders, and the volumes in a folder unless it is that of one case."""
    folders = folders_in(root)
    found = {folder: path for folder in [root, *folders] if (path := find_volume(folder, image)) is not None}
    check_folders(folders, found.keys() - {root})
    cases = [{"case": folder.name, "image": str(path)} for folder, path in found.items()]
    flat = [] if root in found else scans_in(root, others=[case["case"] for case in cases])
    logger.info("%s: read as %d cases <case>/%s.* and %d volumes", root, len(cases), image, len(flat))
    return cases + [{"case": stem(path), "image": str(path)} for path in flat]


def root_folder(dataset_dir: str | Path, *, image: str = "lgemri") -> str:
    """Returns the folder below which results keep the places of the scans.

    It is `dataset_dir`, or the folder of a single volume, or of the scans of a list; of one case, the folder that it
    lies in.
    """
    root = Path(dataset_dir).absolute()
    if is_list(root):
        return str(root_of_list(root))
    folder = root.parent if root.is_file() else root
    return str(folder.parent if folder.is_dir() and find_volume(folder, image) else folder)
