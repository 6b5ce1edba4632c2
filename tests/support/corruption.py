"""Ways to corrupt one case of a data set, and the rule that it breaks then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.support.runs import Case, stem

Corruption = Callable[[Case], tuple[str, str]]  # changes a case; returns the file and the rule that it breaks now


def array(path: str) -> NDArray[Any]:
    """A volume `(x, y, z)`."""
    return np.asarray(itk.array_from_image(itk.imread(path))).T


def rewrite(path: str, volume: NDArray[Any], *, spacing: float = 1.0, compression: bool = True) -> str:
    """Replaces the voxels of a file; its spacing is stretched, its origin stays."""
    old = itk.imread(path)
    image = itk.image_from_array(np.ascontiguousarray(volume.T))
    size = len(image.GetSpacing())
    image.SetSpacing([s * spacing for s in (*old.GetSpacing(), 1.0)[:size]])
    image.SetOrigin((*old.GetOrigin(), 0.0)[:size])
    itk.imwrite(image, path, compression=compression)
    return path


def as_nifti(path: str, volume: NDArray[Any], suffix: str = ".nii.gz") -> str:
    """Replaces a file by a NIfTI file on the phantoms' grid, whichever that is."""
    affine = np.eye(4)
    old = itk.imread(path)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0] * np.array(old.GetSpacing()))
    affine[:3, 3] = [-1.0, -1.0, 1.0] * np.array(old.GetOrigin())
    Path(path).unlink()
    target = str(Path(path).with_name(stem(Path(path)) + suffix))
    nibabel.save(nibabel.Nifti1Image(volume, affine), target)
    return target


def cut(path: str) -> str:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) * 2 // 3])
    return path


def with_voxel(volume: NDArray[Any], value: float) -> NDArray[Any]:
    changed = volume.astype(np.float32)
    changed[3, 4, -1] = value
    return changed


def flat(volume: NDArray[Any]) -> NDArray[Any]:
    """The slice in the middle."""
    return volume[:, :, volume.shape[2] // 2]


def remove(path: str) -> str:
    Path(path).unlink()
    return path


def garbage(path: str) -> str:
    Path(path).write_bytes(b"no volume at all\n" * 20)
    return path


IMAGE: dict[str, Corruption] = {
    "garbled": lambda case: (garbage(case["image"]), "image cannot be read"),
    "truncated": lambda case: (cut(case["image"]), "image cannot be read"),
    "truncated raw": lambda case: (
        cut(rewrite(case["image"], array(case["image"]), compression=False)),
        "image cannot be read",
    ),
    "garbled NIfTI": lambda case: (garbage(as_nifti(case["image"], array(case["image"]))), "image cannot be read"),
    "truncated nii.gz": lambda case: (cut(as_nifti(case["image"], array(case["image"]))), "image cannot be read"),
    "truncated nii": lambda case: (cut(as_nifti(case["image"], array(case["image"]), ".nii")), "image cannot be read"),
    "NaN": lambda case: (
        as_nifti(case["image"], with_voxel(array(case["image"]), np.nan)),
        "image holds NaN or infinite voxels",
    ),
    "infinite": lambda case: (
        as_nifti(case["image"], with_voxel(array(case["image"]), -np.inf)),
        "image holds NaN or infinite voxels",
    ),
    "2D": lambda case: (rewrite(case["image"], flat(array(case["image"]))), "image must be a 3D volume"),
    "4D": lambda case: (
        as_nifti(case["image"], np.stack([array(case["image"])] * 2, axis=-1)),
        "image must be a 3D volume",
    ),
}
PAIR: dict[str, Corruption] = {
    "missing image": lambda case: (remove(case["image"]), "image is missing"),
    "missing label": lambda case: (remove(case["label"]), "label is missing"),
    "garbled label": lambda case: (garbage(case["label"]), "label cannot be read"),
    "truncated label": lambda case: (cut(as_nifti(case["label"], array(case["label"]))), "label cannot be read"),
    "shape": lambda case: (rewrite(case["label"], array(case["label"])[:, :-1]), "differs from the image's"),
    "affine": lambda case: (
        rewrite(case["label"], array(case["label"]), spacing=1.1),
        "affine differs from the image's by up to",
    ),
    "foreign value": lambda case: (
        rewrite(case["label"], np.where(array(case["label"]) > 0, 77, 0).astype(np.uint8)),
        "label values must be among",
    ),
    "fractional value": lambda case: (
        as_nifti(case["label"], with_voxel(array(case["label"]) > 0, 0.5)),
        "label values must be among",
    ),
    "NaN in label": lambda case: (
        as_nifti(case["label"], with_voxel(array(case["label"]) > 0, np.nan)),
        "label values must be among",
    ),
    "empty label": lambda case: (rewrite(case["label"], 0 * array(case["label"])), "label is empty"),
    "2D label": lambda case: (rewrite(case["label"], flat(array(case["label"]))), "label must be a 3D volume"),
}
