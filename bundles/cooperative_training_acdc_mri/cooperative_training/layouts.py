"""How patients lie in folders: as ACDC distributes them, or re-organised; described data sets of the heart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .shared.datasets import Described, described
from .shared.patients import frame_of, patient_of
from .shared.scans import check_names, find_volume, folders_in, visible
from .shared.stacks import read_info
from .shared.validation import InputError

__all__ = ["described_cases", "is_patient", "is_reorganised", "labelled_cases", "patient_folders", "with_patients"]

FRAMES = ("ED", "ES")

SYNONYMS = {  # what else structures are called in lists
    "RV": ("right ventricle", "right ventricular cavity", "RVC", "RV cavity"),
    "MYO": ("myocardium", "MLV", "LV myocardium", "left ventricular myocardium"),
    "LV": ("left ventricle", "left ventricular cavity", "LVC", "LV cavity"),
}

Case = dict[str, Any]
Problem = tuple[str, str, str]


def _volume(folder: Path, name: str) -> Path:
    """Returns the path of `name` with the known suffix that it has, else with ACDC's."""
    return find_volume(folder, name) or folder / f"{name}.nii.gz"


def is_reorganised(folder: Path) -> bool:
    """Whether a folder is of a patient, with `ED_img`, `ED_seg`, `ES_img` or `ES_seg`."""
    return any(re.match(r"E[DS]_(img|seg)\.", path.name) for path in visible(folder))


def is_patient(folder: Path) -> bool:
    """Whether a folder is of a patient, in any layout."""
    frames = (path.name.startswith(f"{folder.name}_frame") for path in visible(folder))
    return is_reorganised(folder) or (folder / "Info.cfg").is_file() or any(frames)


def patient_folders(root: Path) -> dict[str, Path]:
    """Folders below `root`, or below its `training` and `testing` where these hold the patients, by name.

    Raises:
        InputError: when both of these hold a folder of the same name.
    """
    folders = folders_in(root)
    if not any(map(is_patient, folders)):
        parts = [folder for folder in folders if folder.name in ("training", "testing")]
        folders = [entry for part in parts for entry in folders_in(part)] or folders
    found: dict[str, Path] = {}
    for folder in folders:
        if found.setdefault(folder.name, folder) != folder:
            raise InputError([(folder.name, str(folder), f"the patient is in {found[folder.name]} too")])
    return found


def _problems(folder: Path) -> Iterator[Problem]:
    """Yields what keeps the frames of a patient's folder from being named."""
    if not is_patient(folder):
        yield folder.name, str(folder), "holds neither Info.cfg and frames nor ED_img and ES_img"
    if is_reorganised(folder):
        return
    info = read_info(folder / "Info.cfg")
    for frame in FRAMES:
        name, number = f"{folder.name}_{frame}", info.get(frame, "")
        if not number.isdecimal() or len(number) > 4:
            yield name, str(folder / "Info.cfg"), f"must give the number of the {frame} frame"
        elif not (image := _frame(folder, number)).is_file():
            yield name, str(image), f"image is missing, Info.cfg names frame {number} as {frame}"


def _frame(folder: Path, number: str, ending: str = "") -> Path:
    return _volume(folder, f"{folder.name}_frame{int(number):02d}{ending}")


def _cases_of(folder: Path) -> Iterator[Case]:
    """Yields the labelled cases of a patient: ED and ES; a re-organised folder may hold one of them alone."""
    info = {} if is_reorganised(folder) else read_info(folder / "Info.cfg")
    for frame in FRAMES:
        if not info and not any(path.name.startswith(f"{frame}_") for path in visible(folder)):
            continue
        image = _frame(folder, info[frame]) if info else _volume(folder, f"{frame}_img")
        label = _frame(folder, info[frame], "_gt") if info else _volume(folder, f"{frame}_seg")
        case = {"case": f"{folder.name}_{frame}", "patient": folder.name, "frame": frame}
        yield {**case, "image": str(image), "label": str(label)}


def labelled_cases(folders: Sequence[Path]) -> list[Case]:
    """Returns the ED and ES cases of patients, `{"case", "patient", "frame", "image", "label"}`.

    Raises:
        InputError: when a folder is of no layout, `Info.cfg` names no frames or one that is not there, two files could
            be one volume, or two cases have one name.
    """
    problems = [problem for folder in folders for problem in _problems(folder)]
    if problems:
        raise InputError(problems)
    cases = [case for folder in folders for case in _cases_of(folder)]
    check_names(cases)
    return cases


def described_cases(dataset_dir: str | Path, label_order: Sequence[str] | None) -> Described | None:
    """Returns what a data set that describes itself lists, see `datasets.described`.

    Args:
        dataset_dir: of the data set.
        label_order: structures of the values 1, 2, ... of the bundle's label maps; `None`: labels are not needed.

    Raises:
        InputError: as `datasets.described`.
    """
    classes = None if label_order is None else {name: value for value, name in enumerate(label_order, 1)}
    return described(dataset_dir, is_case=is_patient, labelled=classes is not None, classes=classes, synonyms=SYNONYMS)


def with_patients(cases: Mapping[str, list[Case]], told: Mapping[str, str]) -> dict[str, list[Case]]:
    """Returns cases with their patient, as told or by name, and the frame where the name has it."""
    names = [case["case"] for listed in cases.values() for case in listed]
    patients = {name: told.get(name) or patient_of(name, [other.casefold() for other in names]) for name in names}
    return {
        split: [case | {"patient": patients[case["case"]], "frame": frame_of(case["case"])} for case in listed]
        for split, listed in cases.items()
    }
