"""Where the scans lie: the folders of the 2018 atrial challenge, flat folders, and splits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .cases import InputError
from .writing import file_stem

__all__ = ["find_images", "read_split", "root_folder"]

SUFFIXES = (".nrrd", ".nii.gz", ".nii")
SPLITS = ("training", "validation")


def _existing(dataset_dir: str | Path) -> Path:
    root = Path(dataset_dir).absolute()  # the first import of itk changes the working directory for a moment
    if not root.is_dir():
        raise InputError([("", str(root), "dataset_dir does not exist or is no folder")])
    return root


def _volume(folder: Path, stem: str) -> str:
    """Returns the path of `stem` with the first known suffix that exists, else with the challenge's."""
    found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    return str(found[0] if found else folder / (stem + SUFFIXES[0]))


def _named_cases(split_file: Path) -> Mapping[str, list[str]]:
    if not split_file.is_file():
        raise InputError([("", str(split_file), "split file does not exist")])
    try:
        content = json.loads(split_file.read_text())
    except ValueError as error:
        raise InputError([("", str(split_file), f"is no valid JSON ({error})")]) from error
    named: dict[str, Any] = content if isinstance(content, dict) else {}
    if not all(isinstance(named.get(split), list) for split in SPLITS):
        rule = "must hold lists of case names under 'training' and 'validation'"
        raise InputError([("", str(split_file), rule)])
    return named


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
        split_file: JSON file with lists of case names under `training` and `validation`; without one, the sorted cases
            are shuffled with `seed` and split.
        image: file name of the scans without suffix.
        label: file name of the label maps without suffix.
        validation: fraction of the cases for validation, when there is no file.
        seed: seed of the shuffle, when there is no file.

    Returns:
        `{"training": cases, "validation": cases}`, a case being `{"case", "image", "label"}`.

    Raises:
        InputError: when the folder or the split file does not exist, the folder holds no case, or the file is damaged,
            names a case twice or one that has no folder.
    """
    root = _existing(dataset_dir)
    if split_file is not None:
        named = _named_cases(Path(split_file))
    else:
        names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        if len(names) < 2:
            raise InputError([("", str(root), f"needs two case folders or more, holds {len(names)}")])
        shuffled = [str(name) for name in np.random.RandomState(seed).permutation(names)]
        count = max(1, round(validation * len(names)))
        named = {"training": sorted(shuffled[count:]), "validation": sorted(shuffled[:count])}
    both = [*named["training"], *named["validation"]]
    problems = [(name, str(split_file), "is listed twice") for name in sorted({n for n in both if both.count(n) > 1})]
    problems += [(name, str(root / name), "has no folder") for name in both if not (root / name).is_dir()]
    if problems:
        raise InputError(problems)
    return {
        split: [
            {"case": name, "image": _volume(root / name, image), "label": _volume(root / name, label)}
            for name in named[split]
        ]
        for split in SPLITS
    }


def find_images(dataset_dir: str | Path, *, image: str = "lgemri") -> list[dict[str, str]]:
    """Lists the scans to segment: a single file, the challenge's case folders, or a flat folder of volumes.

    Args:
        dataset_dir: a volume, a folder of `<case>/lgemri.*`, or a folder of volumes.
        image: file name of the scans without suffix, in case folders.

    Returns:
        Cases `{"case", "image"}`, sorted by name.

    Raises:
        InputError: when `dataset_dir` does not exist or holds no NRRD or NIfTI volume.
    """
    root = Path(dataset_dir).absolute()
    if root.is_file():
        return [{"case": file_stem(root), "image": str(root)}]
    root = _existing(root)
    cases = []
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and Path(_volume(entry, image)).is_file():
            cases.append({"case": entry.name, "image": _volume(entry, image)})
        elif entry.is_file() and entry.name.endswith(SUFFIXES):
            cases.append({"case": file_stem(entry), "image": str(entry)})
    if not cases:
        raise InputError([("", str(root), f"holds neither <case>/{image}.* nor a volume {' '.join(SUFFIXES)}")])
    return cases


def root_folder(dataset_dir: str | Path) -> str:
    """Returns `dataset_dir`, or the folder it lies in when it is a single volume; results keep their place below it."""
    root = Path(dataset_dir).absolute()
    return str(root.parent if root.is_file() else root)
