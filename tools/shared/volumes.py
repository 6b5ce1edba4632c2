"""Volumes read to the end of their files, and what their headers may say of the grid on which the voxels lie."""

from __future__ import annotations

import gzip
import logging
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import PathLike
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import LoadImage, LoadImaged
from monai.utils import ensure_tuple
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Image
from numpy.typing import NDArray

from .geometry import VolumeError, apart, check_grid, same_grid, sizes_of, times
from .nrrd import read_nrrd

__all__ = ["SUFFIXES", "LoadVolume", "LoadVolumed", "VolumeError", "first_cause", "folder_readers"]
__all__ += ["read_volume", "reason", "renumbered", "voxels_of"]


# Of a reader of MONAI's that is not used, whenever a loader is made where pydicom is installed.
warnings.filterwarnings("ignore", "NvImgCodec")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
MOST = 2**31  # voxels
LONGEST = 500  # characters of a reason
# What reads the path of a scan that is no file, and returns nothing for other paths: `dicom`, in bundles that have it.
folder_readers: list[Callable[[Path], Nifti1Image | None]] = []


def read_volume(path: PathLike, *, dimensions: Sequence[int] = (3, 4)) -> Nifti1Image:
    """Reads a NIfTI (`.nii`, `.nii.gz`) or NRRD file to its end, so that checksum and length are verified.

    Args:
        path: the file; or a series of DICOM as `dicom.find_series` names it, in bundles that have this module.
        dimensions: numbers of axes that a NIfTI file may have; the first three are those of space. NRRD files must have
            these alone.

    Returns:
        The volume, in memory: its `dataobj` is an array of the stored type, or float32 where the header has a scale;
        its `affine` is the one that MONAI's readers give.

    Raises:
        VolumeError: when there is no such regular file, it is damaged, longer or shorter than its header says, of
            another format, holds no real numbers or none at all, has another number of axes, or has a header that
            does not tell size, position and axes of the voxels in the patient: see `check_grid`.
    """
    file = Path(path)
    for reader in folder_readers:
        if (series := reader(file)) is not None:
            _check_voxels(series.get_data_dtype(), series.shape, dimensions)
            check_grid(series.affine, series.shape)
            return series
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError as error:
        raise VolumeError("is missing") from error
    except (OSError, ValueError) as error:
        raise VolumeError(f"cannot be read ({reason(error)})") from error
    if not regular:
        raise VolumeError("is no regular file")
    if not file.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"must be one of {', '.join(SUFFIXES)}")
    read = _read_nrrd if file.suffix.lower() == ".nrrd" else _read_nifti
    try:
        image = read(file, dimensions)
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"cannot be read ({reason(error)})") from error
    check_grid(image.affine, image.shape)
    return image


def first_cause(error: BaseException, *, until: type[BaseException] | tuple[()] = ()) -> BaseException:
    """Returns the first error in a chain of wrappers, or the first `until` in it."""
    while error.__cause__ is not None and not isinstance(error, until):
        error = error.__cause__
    return error


def reason(error: BaseException, *, until: type[BaseException] | tuple[()] = ()) -> str:
    """Returns type and last line of `first_cause`, in one line."""
    error = first_cause(error, until=until)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:LONGEST]}" if lines else type(error).__name__


def voxels_of(image: Nifti1Image) -> NDArray[Any]:
    """Returns the array of a volume that `read_volume` has read, without a copy."""
    return np.asarray(image.dataobj)


class _Reader(NibabelReader):
    """MONAI's reader, of volumes that `read_volume` has read."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> Any:
        self.filenames = ensure_tuple(data)
        try:
            images = [read_volume(name) for name in self.filenames]
        except VolumeError as error:
            raise VolumeError(f"{', '.join(map(str, self.filenames))}: {error}") from error
        return images if len(images) > 1 else images[0]


class LoadVolume(LoadImage):
    """`LoadImage` that reads as `read_volume` does, whichever libraries are installed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register(_Reader())


class LoadVolumed(LoadImaged):
    """`LoadImaged` that reads as `read_volume` does, whichever libraries are installed.

    The `label` of a case with an entry `label_values` is renumbered by it, and the entry is taken out.
    """

    def __init__(self, keys: Any, **options: Any) -> None:
        super().__init__(keys, **options)
        self.register(_Reader())

    def __call__(self, data: Any, reader: Any = None) -> Any:
        """Returns `data` with its volumes."""
        loaded = super().__call__(data, reader)
        if "label" in self.keys and (values := loaded.pop("label_values", None)):
            label = loaded["label"]
            label.copy_(torch.from_numpy(renumbered(label.cpu().numpy(), values)))
        return loaded


def renumbered(label: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """Returns a label map with other values.

    Args:
        label: of any shape.
        values: what takes the place of the values 0, 1, ...; -1 for those that may not be there.

    Raises:
        VolumeError: when it has another value.
    """
    table = np.asarray(values, np.int64)
    allowed = np.flatnonzero(table >= 0)
    if (found := np.setdiff1d(label, allowed)).size:
        raise VolumeError(
            f"values must be among {allowed.tolist()}, as the data set lists, found {found[:10].tolist()}"
        )
    return table[label.astype(np.int64)]


def _read_nrrd(file: Path, _: Sequence[int]) -> Nifti1Image:
    voxels, affine = read_nrrd(file)
    _check_voxels(voxels.dtype, voxels.shape, [3])  # of others, the affine says nothing
    check_grid(affine, voxels.shape)
    return Nifti1Image(_native(voxels), affine, dtype=voxels.dtype)


def _read_nifti(file: Path, dimensions: Sequence[int]) -> Nifti1Image:
    with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as opened:
        stream = cast(gzip.GzipFile, opened)
        start = stream.read(4)
        sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
        kind = Nifti1Image if 348 in sizes else Nifti2Image if 540 in sizes else None
        if kind is None:
            raise VolumeError("cannot be read (no NIfTI file)")
        stream.seek(0)
        raw = kind.header_class.from_fileobj(stream, check=False)
        if bytes(raw["magic"])[:2] != b"n+":
            raise VolumeError("cannot be read (its voxels are in another file)")
        stream.seek(0)
        image = kind.from_file_map({"image": FileHolder(fileobj=stream)}, mmap=False)
        _check_voxels(image.get_data_dtype(), image.shape, dimensions)
        stored = _native(np.asarray(image.dataobj.get_unscaled()))
        if stream.read(1):
            raise VolumeError("cannot be read (it is longer than its header says)")
    _check_header(raw, image)
    scaled = image.affine.copy()
    image = correct_nifti_header_if_necessary(image)
    scaled[:3, :3] *= sizes_of(image.affine) / sizes_of(scaled)
    if not same_grid(image.affine, scaled, shape=image.shape):
        raise VolumeError("has other voxel sizes in its sform than in pixdim, and a qform that does not go with it")
    return kind(_scaled(stored, raw), image.affine, image.header)


def _native(voxels: NDArray[Any]) -> NDArray[Any]:
    return voxels if voxels.dtype.isnative else voxels.astype(voxels.dtype.newbyteorder("="))


def _scaled(stored: NDArray[Any], header: Nifti1Header) -> NDArray[Any]:
    """Returns the voxels by the scale of the header; slopes of 0 and NaN are written for none."""
    slope, inter = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if slope == 0 or np.isnan(slope) or (slope, inter) == (1, 0):
        return stored
    if not np.isfinite([slope, inter]).all():
        raise VolumeError(f"has a scale that is not finite, slope {slope:g} and intercept {inter:g}")
    scaled = np.empty(stored.shape, np.float32, order="F")
    for index in range(stored.shape[-1]):  # a slice at a time takes no memory
        scaled[..., index] = stored[..., index] * slope + inter
    return scaled


def _check_voxels(dtype: np.dtype[Any], shape: Sequence[int], dimensions: Sequence[int]) -> None:
    if len(shape) not in dimensions:
        wanted = " or ".join(f"{number}D" for number in dimensions)
        raise VolumeError(f"must be a {wanted} volume, its shape is {tuple(shape)}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(f"must hold one real number for each voxel, not {dtype}")
    if not 0 < int(np.prod(shape, dtype=object)) <= MOST:
        raise VolumeError(f"holds no scan, its shape is {tuple(shape)}")


def _check_header(raw: Nifti1Header, image: Nifti1Image) -> None:
    """Checks what a NIfTI header, as it is in the file, says of the grid.

    Raises:
        VolumeError: when the unit is not mm, a voxel has no size, neither qform nor sform is there, or not all readers
            agree where the voxels lie, because these, or the lengths in sform and pixdim, differ.
    """
    unit, pixdim = int(raw["xyzt_units"]) % 8, np.abs(np.asarray(raw["pixdim"][1:4], np.float64))
    if unit not in (0, 2):
        raise VolumeError(f"must be in mm, its header has the unit {({1: 'metre', 3: 'micrometre'}).get(unit, unit)}")
    if not (np.isfinite(pixdim) & (pixdim > 0)).all():
        raise VolumeError(f"has no voxel size, pixdim is {pixdim.tolist()}")
    forms = [form for form in (image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]) if form is not None]
    if not forms:
        raise VolumeError("does not say how it lies in the patient, qform_code and sform_code are 0")
    for form in forms:
        check_grid(form, image.shape)
    if (off := apart(forms[0], forms[-1], shape=image.shape)) > pixdim.min():
        raise VolumeError(f"lies at two places, {off:.3g} mm apart: its qform and its sform differ")
    # MONAI takes the lengths of pixdim, and with them the qform, others those of the sform. Files of ACDC have voxels
    # of 1 mm in their sform and the true ones in pixdim.
    sizes = sizes_of(forms[-1])
    longer = np.abs(sizes - pixdim) * np.maximum(np.array(image.shape[:3]) - 1, 1)
    if longer.max() > pixdim.min() and not np.allclose(sizes, 1, atol=1e-4):
        raise VolumeError(f"has voxels of {times(sizes)} mm by its sform, of {times(pixdim)} mm by pixdim")
