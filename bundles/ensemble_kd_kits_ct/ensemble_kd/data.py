"""Where the scans lie: folders of KiTS or ACDC, Decathlon datalists, single volumes; their splits and soft labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from .shared.datasets import Described, described, is_list, root_of_list
from .shared.dicom import dicom_scans
from .shared.lists import SPLITS, read_split_file
from .shared.patients import by_patient, check_patients, draw, expanded
from .shared.scans import (
    SUFFIXES,
    check_folders,
    check_names,
    existing_folder,
    find_volume,
    folders_in,
    scans_in,
    single_scan,
    stem,
)
from .shared.stacks import read_info
from .shared.validation import InputError

__all__ = ["evaluation_cases", "find_scans", "read_split", "root_folder", "soft_label_file", "with_soft_labels"]

logger = logging.getLogger(__name__)

# What else classes are called in lists; with `*`, regions of several values.
SYNONYMS = {
    "kidney": ("kidneys", "kidney*"),
    "tumour": ("kidney tumour", "mass", "kidney mass"),
    "RV": ("right ventricle", "right ventricular cavity", "RVC", "RV cavity"),
    "MYO": ("myocardium", "MLV", "LV myocardium", "left ventricular myocardium"),
    "LV": ("left ventricle", "left ventricular cavity", "LVC", "LV cavity"),
}

Case = dict[str, Any]


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    frames: Sequence[str] = ("ED",),
    label_order: Sequence[str] = (),
    validation: float = 0.2,
    seed: int = 123,
) -> dict[str, list[Case]]:
    """Lists the labelled cases of a data set by split.

    Args:
        dataset_dir: a folder with a folder for each case or patient, as KiTS distributes them
            (`case_NNNNN/{imaging,segmentation}.nii.gz`) or ACDC (`patientNNN/` with `Info.cfg`,
            `patientNNN_frameFF.nii.gz` and `..._gt.nii.gz`); or a data set that describes itself, see
            `datasets.described`: a JSON datalist, a folder of the Decathlon or of nnU-Net. Test scans without a label,
            as the Decathlon lists them, are left out. Records may tell their `patient`, or `subject`.
        split_file: JSON with lists of the folders' names, or of a datalist's case names, under `training`, `validation`
            and, if wanted, `test`.
        frames: the frames of an ACDC patient.
        label_order: classes of the values 1, 2, ... of label maps; a data set that calls them by names may have others.
        validation: without a file, and unless a datalist tells, the fraction of the patients for validation, the same
            of every `Group` in `Info.cfg`, see `patients.draw`.
        seed: of that draw.

    Returns:
        Lists of `{"case", "image", "label"}` under `training`, `validation` and `test`.

    Raises:
        InputError: when the folder or a file does not exist or is damaged, there are fewer than two patients to split,
            a folder or a patient is in two lists, a folder is of neither layout or has two files for one scan, two
            cases have one name, `Info.cfg` names no such frame, or as `datasets.described`.
    """
    root = Path(dataset_dir).absolute()  # the first import of itk changes the working directory for a moment
    if (listed := _described(root, frames, labelled=True, label_order=label_order)) is not None:
        cases = listed.split(split_file, validation=validation, seed=seed)
        check_names(chain.from_iterable(cases.values()))
        return cases
    found = {folder.name: _cases_of(folder, frames) for folder in folders_in(existing_folder(root))}
    logger.info("%s: read as %d folders of cases of KiTS or ACDC", root, len(found))
    if split_file:
        names = read_split_file(split_file)
    else:
        names = _drawn(list(found), root=root, fraction=validation, seed=seed)
    _check_cases(names, found, root, source=split_file or root, frames=frames)
    cases = {split: [case for name in names[split] for case in found[name]] for split in SPLITS}
    check_names(chain.from_iterable(cases.values()))
    return cases


def _described(
    root: Path, frames: Sequence[str], *, labelled: bool, label_order: Sequence[str] = ()
) -> Described | None:
    return described(
        root,
        is_case=lambda folder: bool(_cases_of(folder, frames)),
        labelled=labelled,
        classes={name: value for value, name in enumerate(label_order, 1)} or None,
        synonyms=SYNONYMS,
    )


def _check_cases(
    names: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[Case]],
    root: Path,
    *,
    source: str | Path,
    frames: Sequence[str],
) -> None:
    """Refuses a split with a case that is not there or has no files, and one that divides a patient."""
    listed = list(chain.from_iterable(names.values()))
    if unknown := [name for name in listed if name not in found]:
        raise InputError((name, str(root), "the split file names it, there is no such case") for name in unknown)
    check_patients(names, source=source)
    if bad := [name for name in listed if not found[name]]:
        rule = "holds neither imaging and segmentation nor an Info.cfg with the frames " + ", ".join(frames)
        raise InputError((name, str(root / name), rule) for name in bad)


def _cases_of(folder: Path, frames: Sequence[str]) -> list[Case]:
    """Returns the labelled cases of a folder; none if it is of neither layout."""
    image, label = (find_volume(folder, name) for name in ("imaging", "segmentation"))
    if image or label:
        image, label = image or folder / "imaging.nii.gz", label or folder / "segmentation.nii.gz"
        return [{"case": folder.name, "image": str(image), "label": str(label)}]
    return [
        {"case": f"{folder.name}_{frame}", "image": str(image), "label": str(label)}
        for frame, image, label in _frames(folder, frames)
    ]


def _frames(folder: Path, frames: Sequence[str]) -> Iterator[tuple[str, Path, Path]]:
    """Yields name, image and label of the frames that an ACDC patient's `Info.cfg` numbers."""
    numbers = read_info(folder / "Info.cfg")
    if all(numbers.get(frame, "").isdecimal() and len(numbers[frame]) < 5 for frame in frames):
        for frame in frames:
            name = f"{folder.name}_frame{int(numbers[frame]):02d}"
            image, label = (find_volume(folder, n) or folder / f"{n}.nii.gz" for n in (name, f"{name}_gt"))
            yield frame, image, label


def _drawn(names: Sequence[str], *, root: Path, fraction: float, seed: int) -> dict[str, list[str]]:
    groups = by_patient(names)
    if len(groups) < 2:
        raise InputError([("", str(root), f"needs cases of two patients or more to train, holds {len(groups)}")])
    kinds = {name: read_info(root / name / "Info.cfg").get("Group", "") for name in groups}
    return expanded(draw(kinds, validation=fraction, seed=seed), groups) | {"test": []}


def evaluation_cases(cases: Mapping[str, list[Case]], subset: str | None = None) -> list[Case]:
    """Returns the cases to evaluate.

    Args:
        cases: what `read_split` returned.
        subset: `training`, `validation` or `test`; by default `test`, or `validation` where there is no test case.

    Raises:
        InputError: when there is no such subset.
    """
    chosen = subset or ("test" if cases["test"] else "validation")
    if chosen not in SPLITS:
        raise InputError([("", "subset", f"must be one of {', '.join(SPLITS)}, got {subset}")])
    return cases[chosen]


def find_scans(
    dataset_dir: str | Path,
    *,
    frames: Sequence[str] = ("ED",),
    split_file: str | Path | None = None,
    modality: str | None = None,
    series: Any = None,
    phase: int | None = None,
) -> list[Case]:
    """Lists the scans to segment: a volume, a folder of volumes, of cases in a layout of `read_split`, or DICOM.

    Args:
        dataset_dir: that file or folder (of volumes: see `scans.scans_in`), or a datalist, all of whose records are
            taken, with labels or without; a line in the log counts them by list.
        frames: the frames of an ACDC patient.
        split_file: see `read_split`: its training cases alone are listed.
        modality: `CT` or `MR`, of DICOM; `None`: a folder of DICOM is none of scans.
        series: UID or number of the series of DICOM to segment, see `dicom.find_series`.
        phase: which of several DICOM images at each position.

    Returns:
        Cases `{"case", "image"}`, sorted by name; with `series` where they are DICOM.

    Raises:
        InputError: when there is no volume, a file of another format is given, a folder beside those of cases holds
            none, two files could be one scan, two cases have one name, or as `read_split` and
            `dicom.find_series`.
    """
    root = Path(dataset_dir).absolute()
    if modality is not None and (scans := dicom_scans(root, modality=modality, series=series, phase=phase)) is not None:
        return scans
    if split_file is not None:
        found = read_split(root, split_file, frames=frames)["training"]
    elif (listed := _described(root, frames, labelled=False)) is not None:
        found = listed.scans()
    elif (scan := single_scan(root)) is not None:
        found = [{"case": scan.parent.name if stem(scan).lower() == "imaging" else stem(scan), "image": str(scan)}]
    else:
        found = _scans_of(existing_folder(root), frames)
    if not found:
        raise InputError([("", str(root), f"holds neither cases nor a volume {' '.join(SUFFIXES)}")])
    check_names(found)
    return [{"case": case["case"], "image": case["image"]} for case in found]


def _scans_of(root: Path, frames: Sequence[str]) -> list[Case]:
    """Lists the cases of a folder and of those in it, and the volumes in it unless it is that of one case."""
    alone = _cases_of(root, frames)
    cases = {folder: _cases_of(folder, frames) for folder in folders_in(root)}
    check_folders(cases, [folder for folder, held in cases.items() if held])
    found = [*chain.from_iterable(cases.values()), *alone]
    flat = [] if alone else scans_in(root, others=[case["case"] for case in found])
    logger.info("%s: read as %d cases of KiTS or ACDC and %d volumes", root, len(found), len(flat))
    return found + [{"case": stem(path), "image": str(path)} for path in flat]


def root_folder(dataset_dir: str | Path) -> str:
    """Returns the folder below which results take the places of the scans.

    It is `dataset_dir`, that of a single file, or the one that holds all scans of a datalist; if that is the folder of
    one case of KiTS, the folder that it lies in.
    """
    root = Path(dataset_dir).absolute()
    folder = root if root.is_dir() else root_of_list(root) if is_list(root) else root.parent
    return str(folder.parent if folder.is_dir() and find_volume(folder, "imaging") else folder)


def soft_label_file(folder: str | Path, case: str, *, kind: str = "soft") -> Path:
    """Returns where the ensemble leaves the `soft` labels, their `spread` or the `label` map of a case."""
    return Path(folder).absolute() / case / f"{case}_{kind}.nii.gz"


def with_soft_labels(cases: Mapping[str, list[Case]], folder: str | Path | bool | None) -> dict[str, list[Case]]:
    """Adds to every training case the file of its soft labels.

    Args:
        cases: what `read_split` returned.
        folder: where `annotate.yaml` left them; false or nothing: the cases stay as they are.

    Raises:
        InputError: when a training case has none; it names the case and the file.
    """
    if not folder:
        return dict(cases)
    files = {case["case"]: soft_label_file(str(folder), case["case"]) for case in cases["training"]}
    missing = [(name, str(path)) for name, path in files.items() if not path.is_file()]
    if missing:
        rule = "soft labels are missing: let the ensemble make them first, see annotate.yaml"
        raise InputError((name, path, rule) for name, path in missing)
    training = [case | {"soft": str(files[case["case"]])} for case in cases["training"]]
    return {**cases, "training": training}
