"""Tiny patients in the layouts of the cooperative-training bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE = (4, 5, 3)


def volume(path: Path, voxels: NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(np.ones(SHAPE, np.uint8) if voxels is None else voxels, np.diag([1, 1, 8, 1])), path
    )
    return path


def distributed(root: Path, patient: str, *, group: str = "NOR", frames: tuple[int, int] = (1, 12)) -> Path:
    """A patient as ACDC distributes it: two labelled frames and the whole cine series."""
    folder = root / patient
    for frame in frames:
        volume(folder / f"{patient}_frame{frame:02d}.nii.gz")
        volume(folder / f"{patient}_frame{frame:02d}_gt.nii.gz")
    volume(folder / f"{patient}_4d.nii.gz", np.ones((*SHAPE, 2), np.uint8))
    (folder / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\n")
    return folder


def reorganised(root: Path, patient: str) -> Path:
    for name in ("ED_img", "ED_seg", "ES_img", "ES_seg"):
        volume(root / patient / f"{name}.nii.gz")
    return root / patient


def split_file(folder: Path, **lists: list[str]) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps(lists))
    return path


def patients(cases: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(case["patient"] for case in cases))
