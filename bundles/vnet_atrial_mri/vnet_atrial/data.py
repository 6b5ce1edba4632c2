"""Where the scans lie: the folders of the 2018 atrial challenge, flat folders, and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

SUFFIXES = (".nrrd", ".nii.gz", ".nii")
SPLITS = ("training", "validation")


def _volume(folder: Path, name: str) -> str:
    """Returns the path of `name` with the known suffix that it has, else with the challenge's."""
    return str(find_volume(folder, name, suffixes=SUFFIXES) or folder / (name + SUFFIXES[0]))


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    image: str = "lgemri",
    label: str = "laendo",
    validation: float = 0.2,
    seed: int = 123,
) -> dict[str, list[dict[str, str]]]:
    """Lists the labelled cases of a folder `<dataset_dir>/<case>/{lgemri,laendo}.{nrrd,nii.gz,nii}` by split.

    Args:
        dataset_dir: folder with one sub-folder per case.
        split_file: JSON file with lists of case names under `training` and `validation`; without one,
            patients are drawn, see `patients.draw`.
        image: file name of the scans without suffix.
        label: file name of the label maps without suffix.
        validation: fraction of the patients for validation, when there is no file.
        seed: seed of the shuffle, when there is no file.

    Returns:
        `{"training": cases, "validation": cases}`, a case being `{"case", "image", "label"}`.

    Raises:
        InputError: when the folder does not exist or has two files for an image or a label, there are fewer than two
            patients, or the split file is damaged, names a case twice or one that has no folder, or divides a patient.
    """
    root = existing_folder(dataset_dir)
    folders = {folder.name: folder for folder in folders_in(root)}
    if split_file is not None:
        named = read_split_file(split_file)
        check_patients(named, source=split_file)
    else:
        groups = by_patient(list(folders))
        if len(groups) < 2:
            raise InputError([("", str(root), f"needs the folders of two patients or more, holds {len(groups)}")])
        labelled = [folder for folder in folders.values() if find_volume(folder, image) or find_volume(folder, label)]
        check_folders(folders.values(), labelled)
        named = expanded(draw(dict.fromkeys(groups, ""), validation=validation, seed=seed), groups)
    listed = [name for split in SPLITS for name in named[split]]
    if absent := [(name, str(root / name), "has no folder") for name in listed if name not in folders]:
        raise InputError(absent)
    found = {
        split: [
            {"case": name, "image": _volume(folders[name], image), "label": _volume(folders[name], label)}
            for name in named[split]
        ]
        for split in SPLITS
    }
    check_names(case for cases in found.values() for case in cases)
    return found


def find_images(
    dataset_dir: str | Path, *, image: str = "lgemri", series: Any = None, phase: int | None = None
) -> list[dict[str, str]]:
    """Lists the scans to segment: a single file, the challenge's case folders or one, a folder of volumes, or DICOM.

    Args:
        dataset_dir: a volume, a folder of `<case>/lgemri.*`, such a case, a folder of volumes, see `scans.scans_in`,
            or a file or folder of MR series.
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
    if (alone := single_scan(dataset_dir)) is not None:
        name = stem(alone)
        return [{"case": alone.parent.name if name.lower() == image else name, "image": str(alone)}]
    root = existing_folder(dataset_dir)
    folders = folders_in(root)
    found = {folder: path for folder in [root, *folders] if (path := find_volume(folder, image)) is not None}
    check_folders(folders, found.keys() - {root})
    cases = [{"case": folder.name, "image": str(path)} for folder, path in found.items()]
    flat = [] if root in found else scans_in(root, others=[case["case"] for case in cases])
    cases += [{"case": stem(path), "image": str(path)} for path in flat]
    if not cases:
        raise InputError([("", str(root), f"holds neither <case>/{image}.* nor a volume {' '.join(SUFFIXES)}")])
    check_names(cases)
    return sorted(cases, key=lambda case: case["case"])


def root_folder(dataset_dir: str | Path, *, image: str = "lgemri") -> str:
    """Returns the folder below which results keep the places of the scans.

    It is `dataset_dir`, or the folder of a single volume; of one case, the folder that it lies in.
    """
    root = Path(dataset_dir).absolute()
    folder = root.parent if root.is_file() else root
    return str(folder.parent if folder.is_dir() and find_volume(folder, image) else folder)
