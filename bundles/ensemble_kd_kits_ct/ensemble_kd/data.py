"""Where the scans lie: folders of KiTS or ACDC, Decathlon datalists, single volumes; their splits and soft labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cases import InputError
from .writing import safe_name

__all__ = ["evaluation_cases", "find_scans", "read_split", "root_folder", "soft_label_file", "with_soft_labels"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
SPLITS = ("training", "validation", "test")

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
            paths are relative to it. Test scans without a label, as the Decathlon lists them, are left out.
        split_file: JSON with lists of the folders' names, or of a datalist's case names, under `training`, `validation`
            and, if wanted, `test`.
        frames: the frames of an ACDC patient.
        validation: without a file, and unless a datalist tells, the fraction of the folders for validation.
        seed: of that draw.

    Returns:
        Lists of `{"case", "image", "label"}` under `training`, `validation` and `test`.

    Raises:
        InputError: when the folder or a file does not exist or is damaged, there are fewer than two folders to split,
            a folder is in two lists or of neither layout, two cases of a datalist have one name, or `Info.cfg` names no
            such frame.
    """
    root = Path(dataset_dir).absolute()  # the first import of itk changes the working directory for a moment
    if root.suffix == ".json":
        lists = _datalist(root)
        lists["test"] = [case for case in lists["test"] if "label" in case]
        if split_file is None and lists["validation"]:
            return lists
        found = {case["case"]: [case] for cases in lists.values() for case in cases}
    else:
        found = {folder.name: _cases_of(folder, frames) for folder in _folders(root)}
    names = _named(Path(split_file)) if split_file else _drawn(list(found), root=root, fraction=validation, seed=seed)
    if unknown := [name for split in SPLITS for name in names[split] if name not in found]:
        raise InputError((name, str(root), "the split file names it, there is no such case") for name in unknown)
    listed = [name for split in SPLITS for name in names[split]]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise InputError((name, str(split_file), "is listed twice") for name in twice)
    if bad := [name for name in listed if not found[name]]:
        rule = "holds neither imaging and segmentation nor an Info.cfg with the frames " + ", ".join(frames)
        raise InputError((name, str(root / name), rule) for name in bad)
    return {split: [case for name in names[split] for case in found[name]] for split in SPLITS}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError([("", str(root), "dataset_dir does not exist")])
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _cases_of(folder: Path, frames: Sequence[str]) -> list[Case]:
    """Returns the labelled cases of a folder; none if it is of neither layout."""
    if _file(folder, "imaging") or _file(folder, "segmentation"):
        image, label = (_file(folder, stem) or folder / f"{stem}.nii.gz" for stem in ("imaging", "segmentation"))
        return [{"case": folder.name, "image": str(image), "label": str(label)}]
    return [
        {"case": f"{folder.name}_{frame}", "image": str(image), "label": str(label)}
        for frame, image, label in _frames(folder, frames)
    ]


def _frames(folder: Path, frames: Sequence[str]) -> Iterator[tuple[str, Path, Path]]:
    """Yields name, image and label of the frames that an ACDC patient's `Info.cfg` numbers."""
    info = folder / "Info.cfg"
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    numbers = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if all(numbers.get(frame, "").isdecimal() for frame in frames):
        for frame in frames:
            stem = f"{folder.name}_frame{int(numbers[frame]):02d}"
            image, label = (_file(folder, stem + ending) or folder / f"{stem}{ending}.nii.gz" for ending in ("", "_gt"))
            yield frame, image, label


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / (stem + suffix)).is_file()), None)


def _json(path: Path, kind: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError([("", str(path), f"{kind} does not exist")])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError([("", str(path), f"is no valid JSON ({error})")]) from error
    return content if isinstance(content, dict) else {}


def _named(split_file: Path) -> dict[str, list[str]]:
    content = _json(split_file, "split file")
    lists = [content.get("training"), content.get("validation"), content.get("test", [])]
    if not all(isinstance(names, list) for names in lists):
        raise InputError([("", str(split_file), "must hold lists of case names under 'training' and 'validation'")])
    return {split: [str(name) for name in content.get(split, [])] for split in SPLITS}


def _drawn(names: Sequence[str], *, root: Path, fraction: float, seed: int) -> dict[str, list[str]]:
    if len(names) < 2:
        raise InputError([("", str(root), f"needs two cases or more to train, holds {len(names)}")])
    shuffled = [str(name) for name in np.random.RandomState(seed).permutation(sorted(names))]
    count = max(1, round(fraction * len(names)))
    return {"training": sorted(shuffled[count:]), "validation": sorted(shuffled[:count]), "test": []}


def _datalist(path: Path, *, labelled: bool = True) -> dict[str, list[Case]]:
    """Returns the cases of a datalist; those under `test` may have no label, and be mere paths of images."""
    content = _json(path, "datalist")
    if "training" not in content or not all(isinstance(content.get(split, []), list) for split in SPLITS):
        rule = "must hold a list of cases under 'training' and, if wanted, 'validation' and 'test'"
        raise InputError([("", str(path), rule)])
    lists: dict[str, list[Case]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        keys = ("image", "label") if labelled and split != "test" else ("image",)
        for entry in content.get(split, []):
            record = {"image": entry} if isinstance(entry, str) and split == "test" else entry
            if not isinstance(record, dict) or not all(record.get(key) for key in keys):
                raise InputError([("", str(path), f"every record in {split} must have an {' and a '.join(keys)}")])
            files = {key: str((path.parent / record[key]).absolute()) for key in ("image", "label") if record.get(key)}
            lists[split].append({"case": str(record.get("case") or _stem(Path(files["image"])))} | files)
    _check_names([case["case"] for cases in lists.values() for case in cases], root=path)
    return lists


def _check_names(names: Sequence[str], *, root: Path) -> None:
    """Raises an `InputError` for names of two cases, of which only one would keep its results."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError((name, str(root), "two cases have this name") for name in twice)


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
    dataset_dir: str | Path, *, frames: Sequence[str] = ("ED",), split_file: str | Path | None = None
) -> list[Case]:
    """Lists the scans to segment: a volume, a folder of volumes, or of cases in a layout of `read_split`.

    Args:
        dataset_dir: that file or folder, or a datalist, all of whose records are taken, with labels or without.
        frames: the frames of an ACDC patient.
        split_file: see `read_split`: its training cases alone are listed.

    Returns:
        Cases `{"case", "image"}`, sorted by name.

    Raises:
        InputError: when there is no volume, two cases have one name, or as `read_split`.
    """
    root = Path(dataset_dir).absolute()
    if split_file is not None:
        found = read_split(root, split_file, frames=frames)["training"]
    elif root.suffix == ".json":
        found = [case for cases in _datalist(root, labelled=False).values() for case in cases]
    elif root.is_file():
        found = [{"case": _stem(root), "image": str(root)}]
    else:
        found = [case for folder in [*_folders(root), root] for case in _cases_of(folder, frames)] or _volumes(root)
    if not found:
        raise InputError([("", str(root), f"holds neither cases nor a volume {' '.join(SUFFIXES)}")])
    _check_names([case["case"] for case in found], root=root)
    return [{"case": case["case"], "image": case["image"]} for case in found]


def _volumes(root: Path) -> list[Case]:
    files = sorted(path for path in root.iterdir() if path.name.endswith(SUFFIXES) and not path.name.startswith("."))
    return [{"case": _stem(path), "image": str(path)} for path in files if path.is_file()]


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.stem)


def root_folder(dataset_dir: str | Path) -> str:
    """Returns the folder below which results take the places of the scans.

    It is `dataset_dir`, that of a single file, or the one that holds all scans of a datalist.
    """
    root = Path(dataset_dir).absolute()
    if root.suffix == ".json":
        lists = _datalist(root, labelled=False)
        return os.path.commonpath([Path(case["image"]).parent for cases in lists.values() for case in cases])
    return str(root if root.is_dir() else root.parent)


def soft_label_file(folder: str | Path, case: str, *, kind: str = "soft") -> Path:
    """Returns where the ensemble leaves the `soft` labels, their `spread` or the `label` map of a case."""
    name = safe_name(case)
    return Path(folder).absolute() / name / f"{name}_{kind}.nii.gz"


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
