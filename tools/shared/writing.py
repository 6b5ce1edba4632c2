"""Volumes on disk: where each scan's lie, complete or not at all, and on the scan's grid for every reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import FolderLayoutBase, ImageWriter
from monai.transforms import SaveImaged
from monai.utils import convert_data_type, get_equivalent_dtype
from numpy.typing import NDArray

from .files import atomic_write
from .scans import stem
from .validation import Case, InputError, case_name
from .volumes import SUFFIXES

__all__ = ["ScanGridWriter", "ScanLayout", "check_outputs", "check_shape", "layouts_of", "scan_of_case"]
__all__ += ["write_volume"]

NIFTI_GRID = (
    *("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def scan_of_case(image: str | Path, case: str) -> str:
    """Returns the path by which files of a scan of several images are named: beside its images, after its case."""
    return str(Path(image).parent / f"{case}.nii.gz")


class ScanLayout(FolderLayoutBase):
    """Places files below `output_dir` as the scans lie below `root`: `<folder>/<scan>_<postfix><extension>`.

    A scan outside of `root` keeps the folders of its path that are not of `root`. Nothing is ever placed elsewhere.

    Args:
        output_dir: the folder.
        postfix: what is added to the scan's name.
        root: folder of the scans; `None`: every scan gets a folder of its name.
        extension: of the files.
        by_case: whether the scans are named after their cases, see `scan_of_case`.

    Raises:
        InputError: when there is no such format.
    """

    def __init__(
        self,
        output_dir: str | Path,
        postfix: str,
        *,
        root: str | Path | None = None,
        extension: str = ".nii.gz",
        by_case: bool = False,
    ) -> None:
        if extension not in SUFFIXES:
            raise InputError([("", "extension of results", f"must be one of {', '.join(SUFFIXES)}, got {extension}")])
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self.root = root
        self.extension = extension
        self.by_case = by_case

    def filename(self, subject: str | Path = "", **_: Any) -> Path:
        """Returns the file of a scan, whose path is `subject`."""
        scan = Path(os.path.abspath(subject))  # noqa: PTH100  # without `..`, which Path.absolute keeps
        place: Sequence[str] = [stem(scan)]
        if self.root is not None:
            place = Path(os.path.relpath(scan.parent, os.path.abspath(self.root))).parts  # noqa: PTH100
        place = [part for part in place if part != ".."]
        return self.output_dir.joinpath(*place, f"{stem(scan)}_{self.postfix}{self.extension}")

    def of(self, case: Case) -> Path:
        """Returns the file of a case."""
        return self.filename(scan_of_case(case["image"], case_name(case)) if self.by_case else case["image"])

    def set_aside(self, case: Case) -> None:
        """Renames the file that an earlier run has left of a case, if any, to `..._previous<extension>`."""
        file = self.of(case)
        with suppress(FileNotFoundError):
            file.replace(file.with_name(f"{stem(file)}_previous{self.extension}"))


def layouts_of(postprocessing: Any) -> list[ScanLayout]:
    """Returns the layouts by which transforms save, see `check_outputs`."""
    savers = [step.saver for step in getattr(postprocessing, "transforms", ()) if isinstance(step, SaveImaged)]
    return [saver.folder_layout for saver in savers if isinstance(saver.folder_layout, ScanLayout)]


def check_outputs(cases: Sequence[Case], postprocessing: Any = None) -> None:
    """Checks that no two cases share a name or a file that `postprocessing` writes, and none is written beside scans.

    Args:
        cases: cases with `image`; those whose image is not a file are passed over.
        postprocessing: transforms, among which `SaveImaged` with a `ScanLayout` write.

    Raises:
        InputError: when they do.
    """
    listed = [case for case in cases if isinstance(case.get("image"), str | Path)]
    images = [Path(case["image"]) for case in listed]  # which may be folders of DICOM
    folders = {os.path.realpath(folder) for image in images for folder in (image, image.parent)}
    problems = [*_shared("name", listed, case_name)]
    for layout in layouts_of(postprocessing):
        problems += [*_shared("file", listed, layout.of), *_beside(folders, listed, layout.of)]
    if problems:
        raise InputError(dict.fromkeys(problems))


def _beside(
    folders: set[str], cases: Iterable[Case], file_of: Callable[[Case], Path]
) -> Iterable[tuple[str, str, str]]:
    for case in cases:
        if os.path.realpath(file_of(case).parent) in folders:
            yield case_name(case), str(case["image"]), "its results would lie beside scans: choose another output_dir"


def _shared(what: str, cases: Iterable[Case], of: Callable[[Case], str | Path]) -> Iterable[tuple[str, str, str]]:
    first: dict[str, Case] = {}
    for case in cases:
        thing = str(of(case))
        other = first.setdefault(thing, case)
        if other is not case:
            rule = f"its results would have the same {what} as those of {other['image']}: {thing}"
            yield case_name(case), str(case["image"]), rule


class ScanGridWriter(ImageWriter):
    """MONAI's writer for maps `(C, H, W, D)` on the grid of the scan that they were made of, which lends its header.

    Args:
        output_dtype: type of the voxels in the file.
        kwargs: not used; of other writers.
    """

    def __init__(self, output_dtype: Any = np.float32, **kwargs: Any) -> None:
        super().__init__(output_dtype=output_dtype, meta={})

    def set_data_array(self, data_array: Any, **_: Any) -> None:
        """Takes the voxels."""
        values = np.moveaxis(convert_data_type(data_array, np.ndarray)[0], 0, -1)
        self.data_obj = values.astype(get_equivalent_dtype(self.output_dtype, np.ndarray), copy=False)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Takes what is known of the scan: its file `source`, else `filename_or_obj`, and its `original_affine`."""
        self.meta = dict(meta_dict or {})

    def write(self, filename: str | Path, verbose: bool = False, **_: Any) -> None:
        """Writes the file, complete or not at all.

        Raises:
            OSError: when it cannot be written.
            ValueError: when the maps are not on the scan's grid.
        """
        super().write(filename, verbose=verbose)
        affine = np.asarray(self.meta["original_affine"], dtype=np.float64)
        write_volume(filename, self.data_obj, affine=affine, like=self.meta.get("source", self.meta["filename_or_obj"]))


def write_volume(
    path: str | Path,
    values: NDArray[Any],
    *,
    affine: NDArray[Any],
    like: str | Path | None = None,
    slope: float | None = None,
) -> None:
    """Writes a volume as NIfTI, complete or not at all.

    Args:
        path: the file.
        values: `(H, W, D, C)`, or `(H, W, D)`.
        affine: of the voxels, RAS in mm.
        like: file of the scan on whose grid the voxels are; from NIfTI the geometry is taken as it is, so that every
            reader sees both alike.
        slope: what stored values are multiplied with when they are read.

    Raises:
        OSError: when it cannot be written; nothing of it is left.
        ValueError: when the scan has another shape.
    """
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    same = str(like).lower().endswith((".nii", ".nii.gz")) and not Path(str(like)).is_dir()
    image = _nifti_like(nibabel.load(like), values) if same else _nifti(affine, values)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with atomic_write(path) as partial:
        nibabel.save(image, partial)


def check_shape(values: NDArray[Any], scan: Sequence[int]) -> None:
    """Raises a `ValueError` unless a result has the size of its scan."""
    if values.shape[:3] != tuple(scan[:3]):
        raise ValueError(f"the result is {values.shape[:3]} voxels, the scan {tuple(scan[:3])}")


def _nifti_like(scan: Any, values: NDArray[Any]) -> Any:
    check_shape(values, scan.shape)
    kind = nibabel.Nifti2Image if isinstance(scan, nibabel.Nifti2Image) else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    for name in NIFTI_GRID:
        header[name] = scan.header[name]
    header["pixdim"][:4] = scan.header["pixdim"][:4]
    return kind(values, None, header)


def _nifti(affine: NDArray[Any], values: NDArray[Any]) -> Any:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image
