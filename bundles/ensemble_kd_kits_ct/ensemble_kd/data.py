"""Where the scans lie: folders of KiTS or ACDC, Decathlon datalists, single volumes; their splits and soft labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .shared.dicom import dicom_scans
from .shared.lists import SPLITS, lists_of, read_json, read_split_file
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

PATIENT = ("patient", "subject")  # entries of a datalist's records

Case = dict[str, str]


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    frames: Sequence[str] = ("ED",),
    validation: float = 0.2,
    seed: int = 123,
) -> dict[str, list[Case]]:
    """Lists the labelled cases of a data set by split.

    Args:
        dataset_dir: a folder with a folder for each case or patient, as KiTS distributes them
            (`case_NNNNN/{imaging,segmentation}.nii.gz`) or ACDC (`patientNNN/` with `Info.cfg`,
            `patientNNN_frameFF.nii.gz` and `..._gt.nii.gz`); or a JSON datalist as of the Medical Segmentation
            Decathlon, with records `{"image", "label"}` under `training` and, if wanted, `validation` and `test`, whose
            paths are relative to it. Test scans without a label, as the Decathlon lists them, are left out. Records may
            tell their `patient`, or `subject`.
        split_file: JSON with lists of the folders' names, or of a datalist's case names, under `training`, `validation`
            and, if wanted, `test`.
        frames: the frames of an ACDC patient.
        validation: without a file, and unless a datalist tells, the fraction of the patients for validation, the same
            of every `Group` in `Info.cfg`, see `patients.draw`.
        seed: of that draw.

    Returns:
        Lists of `{"case", "image", "label"}` under `training`, `validation` and `test`.

    Raises:
        InputError: when the folder or a file does not exist or is damaged, there are fewer than two patients to split,
            a folder or a patient is in two lists, a folder is of neither layout or has two files for one scan, two
            cases have one name, or `Info.cfg` names no such frame.
    """
    root = Path(dataset_dir).absolute()  # the first import of itk changes the working directory for a moment
    patients: dict[str, str] = {}
    if _is_datalist(root):
        lists, patients = _datalist(root)
        lists["test"] = [case for case in lists["test"] if "label" in case]
        found = {case["case"]: [case] for cases in lists.values() for case in cases}
    else:
        lists = {}
        found = {folder.name: _cases_of(folder, frames) for folder in folders_in(existing_folder(root))}
    if split_file:
        names = read_split_file(split_file)
    elif lists.get("validation"):
        names = {split: [case["case"] for case in lists[split]] for split in SPLITS}
    else:
        tested = {case["case"] for case in lists.get("test", [])}
        names = _drawn(
            [name for name in found if name not in tested], patients, root=root, fraction=validation, seed=seed
        )
        names["test"] = sorted(tested)
    if unknown := [name for split in SPLITS for name in names[split] if name not in found]:
        raise InputError((name, str(root), "the split file names it, there is no such case") for name in unknown)
    check_patients(names, source=split_file or root, patients=patients)
    if bad := [name for split in SPLITS for name in names[split] if not found[name]]:
        rule = "holds neither imaging and segmentation nor an Info.cfg with the frames " + ", ".join(frames)
        raise InputError((name, str(root / name), rule) for name in bad)
    cases = {split: [case for name in names[split] for case in found[name]] for split in SPLITS}
    check_names(case for split in SPLITS for case in cases[split])
    return cases


def _is_datalist(path: Path) -> bool:
    return path.suffix.lower() == ".json" and not os.path.isdir(path)  # noqa: PTH112  # which raises when a folder above cannot be read


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


def _drawn(
    names: Sequence[str], patients: Mapping[str, str], *, root: Path, fraction: float, seed: int
) -> dict[str, list[str]]:
    groups = by_patient(names, patients)
    if len(groups) < 2:
        raise InputError([("", str(root), f"needs cases of two patients or more to train, holds {len(groups)}")])
    kinds = {name: "" if root.is_file() else read_info(root / name / "Info.cfg").get("Group", "") for name in groups}
    return expanded(draw(kinds, validation=fraction, seed=seed), groups)


def _datalist(path: Path, *, labelled: bool = True) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Returns the cases of a datalist, and the patients of those whose records tell them.

    Those under `test` may have no label, and be mere paths of images.
    """
    rule = "must hold a list of cases under 'training' and, if wanted, 'validation' and 'test'"
    content = lists_of(read_json(path, kind="datalist"), path, known=SPLITS, needed=["training"], rule=rule)
    lists: dict[str, list[Case]] = {split: [] for split in SPLITS}
    patients: dict[str, str] = {}
    for split in SPLITS:
        keys = ("image", "label") if labelled and split != "test" else ("image",)
        for entry in content[split]:
            record = {"image": entry} if isinstance(entry, str) and split == "test" else entry
            if not isinstance(record, dict) or not all(_is_text(record.get(key)) for key in keys):
                raise InputError([("", str(path), f"every record in {split} must have an {' and a '.join(keys)}")])
            files = {key: str((path.parent / record[key]).absolute()) for key in ("image", "label") if record.get(key)}
            case = record.get("case") or stem(Path(files["image"]))
            lists[split].append({"case": case} | files)
            patients.update((case, str(record[key])) for key in PATIENT if record.get(key) is not None)
    check_names((case for cases in lists.values() for case in cases), source=path)
    return lists, patients


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


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
    elif _is_datalist(root):
        lists, _ = _datalist(root, labelled=False)
        counts = ", ".join(f"{len(cases)} of {split}" for split, cases in lists.items() if cases)
        logger.info("%s: every list is taken, %s", root, counts)
        found = [case for cases in lists.values() for case in cases]
    elif (scan := single_scan(root)) is not None:
        found = [{"case": scan.parent.name if stem(scan).lower() == "imaging" else stem(scan), "image": str(scan)}]
    else:
        alone = _cases_of(existing_folder(root), frames)
        cases = {folder: _cases_of(folder, frames) for folder in folders_in(root)}
        check_folders(cases, [folder for folder, held in cases.items() if held])
        found = [case for held in cases.values() for case in held] + alone
        flat = [] if alone else scans_in(root, others=[case["case"] for case in found])
        found += [{"case": stem(path), "image": str(path)} for path in flat]
    if not found:
        raise InputError([("", str(root), f"holds neither cases nor a volume {' '.join(SUFFIXES)}")])
    check_names(found)
    return [{"case": case["case"], "image": case["image"]} for case in found]


def root_folder(dataset_dir: str | Path) -> str:
    """Returns the folder below which results take the places of the scans.

    It is `dataset_dir`, that of a single file, or the one that holds all scans of a datalist; if that is the folder of
    one case of KiTS, the folder that it lies in.
    """
    root = Path(dataset_dir).absolute()
    folder = root if root.is_dir() else root.parent
    if _is_datalist(root):
        lists, _ = _datalist(root, labelled=False)
        folders = [Path(case["image"]).parent for cases in lists.values() for case in cases]
        folder = Path(os.path.commonpath(folders or [folder]))
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
