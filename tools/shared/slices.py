"""The slices of DICOM images, single or many in a file: what their headers say of each, and their voxels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from .volumes import VolumeError, reason

__all__ = ["ORDER", "Header", "Slice", "is_dicom", "pydicom_module", "read_header", "read_voxels"]

PACKAGES = "needs packages that are not installed: pip install pydicom python-gdcm"
CLASSIC = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}
ENHANCED = {
    **dict.fromkeys(("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"), "CT"),
    **dict.fromkeys(("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"), "MR"),
}
# What tells images of one position apart, in the order in which it is looked for: the keyword in a file of one image,
# then the sequence and keyword in one of many. The last two count images and say nothing of their meaning.
ORDER = {
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "InstanceNumber": ("FrameContentSequence", "FrameNumber"),  # which no standard knows: the place in the file counts
}
GEOMETRY = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
LENGTHS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")
TEXTS = (*NEEDED, "SOPInstanceUID", "SeriesDescription", "Modality", "FrameOfReferenceUID")
TAGS = [
    *(*TEXTS, "SeriesNumber", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *GEOMETRY, *ORDER),
]

Find = Callable[[str, str], Any]


class Slice(NamedTuple):
    """One image of a volume."""

    file: str
    frame: int  # in the file, from 0
    position: tuple[float, ...]  # of the first voxel's centre, mm to the left, back and head
    orientation: tuple[float, ...]  # unit vectors along a row and down a column
    spacing: tuple[float, ...]  # mm from row to row and from column to column
    scale: tuple[float, float]  # slope and intercept
    order: tuple[float | None, ...]  # values of `ORDER`
    kind: tuple[str, ...]  # its ImageType

    def name(self) -> str:
        """The file, for messages; of several images in one, which it is."""
        return Path(self.file).name + (f" (frame {self.frame + 1})" if self.frame else "")


class Header(NamedTuple):
    """What a DICOM file says of itself; `problem` says what keeps its images from being those of a scan."""

    file: str
    study: str
    series: str
    uid: str
    number: int | None
    description: str
    modality: str
    reference: str
    size: tuple[int, int]  # rows and columns
    dtype: str
    slices: tuple[Slice, ...]
    problem: str


def is_dicom(path: str | Path) -> bool:
    """Returns whether a file starts as those of DICOM do."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: str | Path) -> Header:
    """Returns what a DICOM file says of its images; read again only if the file has changed.

    Raises:
        VolumeError: when it cannot be read, or does not say of which series it is.
    """
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise VolumeError(f"cannot be read ({reason(error)})") from error
    return _read(str(path), (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


@lru_cache(maxsize=2**14)
def _read(path: str, _: Sequence[int]) -> Header:
    pydicom = pydicom_module()
    try:
        return _header(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS))
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"cannot be read ({reason(error)})") from error


def pydicom_module() -> Any:
    """Returns pydicom.

    Raises:
        VolumeError: when it is not installed; it says how to install it.
    """
    module, found = optional_import("pydicom")
    if not found:
        raise VolumeError(f"is DICOM, which {PACKAGES}")
    return module


def _header(path: str, dataset: Any) -> Header:
    texts = {name: str(dataset.get(name) or "") for name in TEXTS}
    if missing := [name for name in NEEDED if not texts[name]]:
        raise VolumeError(f"is no complete DICOM file, {missing[0]} is missing")
    bits, signed = int(dataset.get("BitsAllocated") or 0), dataset.get("PixelRepresentation")
    problem, slices = _problem(dataset), list[Slice]()
    if not problem:
        try:
            slices = _slices(path, dataset)
        except (VolumeError, TypeError, ValueError) as error:
            problem = str(error) if isinstance(error, VolumeError) else f"has a damaged header ({reason(error)})"
    number = dataset.get("SeriesNumber")
    return Header(
        file=path,
        study=texts["StudyInstanceUID"],
        series=texts["SeriesInstanceUID"],
        uid=texts["SOPInstanceUID"],
        number=None if number is None else int(number),
        description=texts["SeriesDescription"],
        modality=texts["Modality"],
        reference=texts["FrameOfReferenceUID"],
        size=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        dtype=f"{'f' if signed is None else 'i' if signed else 'u'}{bits // 8}",
        slices=tuple(slices),
        problem=problem,
    )


def _problem(dataset: Any) -> str:
    """Returns why a file's images are none of a scan, nothing if they may be."""
    kind, photometric = str(dataset.SOPClassUID), dataset.get("PhotometricInterpretation")
    if kind not in CLASSIC | ENHANCED:
        name = getattr(dataset.SOPClassUID, "name", kind)
        return f"is no CT or MR image ({name.removesuffix(' Storage')})"
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric != "MONOCHROME2":
        return f"must hold one brightness for each pixel, not {photometric}"
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        return "is a mosaic of slices"
    if dataset.get("ModalityLUTSequence"):
        return "has a table for its values (ModalityLUTSequence) instead of a slope"
    if not dataset.get("Rows") or not dataset.get("Columns") or not dataset.get("BitsAllocated"):
        return "does not say how large it is (Rows, Columns, BitsAllocated)"
    if kind in CLASSIC and int(dataset.get("NumberOfFrames") or 1) > 1:
        return "holds several images, and does not say where each lies"
    return ""


def _slices(path: str, dataset: Any) -> list[Slice]:
    kind = tuple(map(str, dataset.get("ImageType") or ()))
    if str(dataset.SOPClassUID) in CLASSIC:
        return [
            _slice(path, 0, lambda _, name: dataset.get(name), kind=kind, order={name: ("", name) for name in ORDER})
        ]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise VolumeError(f"holds {dataset.get('NumberOfFrames')} images, and says of {len(frames)} where they lie")
    return [_slice(path, index, _finder(frame, shared), kind=kind, order=ORDER) for index, frame in enumerate(frames)]


def _finder(frame: Any, shared: Any) -> Find:
    def find(sequence: str, name: str) -> Any:
        for group in (frame, shared):
            items = group.get(sequence)
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return None

    return find


def _slice(path: str, index: int, find: Find, *, kind: tuple[str, ...], order: dict[str, tuple[str, str]]) -> Slice:
    position, orientation, spacing = (_numbers(name, find(sequence, name)) for name, sequence in GEOMETRY.items())
    scale = tuple(find("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = (
        float(value if value is not None else default) for value, default in zip(scale, (1, 0), strict=True)
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise VolumeError(f"has a scale without sense, slope {slope:g} and intercept {intercept:g}")
    values = [find(*place) for place in order.values()]
    if values[-1] is None:
        values[-1] = index
    own = find("MRImageFrameTypeSequence", "FrameType") or find("CTImageFrameTypeSequence", "FrameType")
    return Slice(
        path,
        index,
        position,
        orientation,
        spacing,
        (slope, intercept),
        tuple(None if value is None else float(value) for value in values),
        tuple(map(str, own)) if own else kind,
    )


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values or ())
    if len(numbers) != LENGTHS[name] or not np.isfinite(numbers).all():
        raise VolumeError(f"does not say where it lies in the patient, {name} is {list(numbers) or 'missing'}")
    return numbers


def read_voxels(slices: Sequence[Slice], *, size: tuple[int, int], dtype: str | None) -> NDArray[Any]:
    """Returns the voxels `(columns, rows, slices)`, each slice by its own slope and intercept.

    Args:
        slices: in the order wanted.
        size: rows and columns of each.
        dtype: of the stored values, if all slices have the same.

    Returns:
        The stored type where no slice is scaled, else float32.

    Raises:
        VolumeError: naming the file whose pixels are missing, too few, damaged, or compressed so that no installed
            package can decode them.
    """
    plain = dtype is not None and all(piece.scale == (1, 0) for piece in slices)
    voxels = np.empty((size[1], size[0], len(slices)), dtype if plain else np.float32, order="F")
    places: dict[str, list[int]] = {}
    for place, piece in enumerate(slices):
        places.setdefault(piece.file, []).append(place)
    for file, wanted in places.items():
        try:
            pixels = _pixels(file).reshape(-1, *size)
            for place in wanted:
                slope, intercept = slices[place].scale
                stored = pixels[slices[place].frame].T
                voxels[..., place] = stored if plain else stored * slope + intercept
        except VolumeError:
            raise
        except Exception as error:
            raise VolumeError(f"cannot be read: {Path(file).name} ({reason(error)})") from error
    return voxels


def _pixels(file: str) -> NDArray[Any]:
    dataset = pydicom_module().dcmread(file)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not _has_decoder(syntax):
        rule = f"is compressed as {syntax.name}, and no decoder of it is installed: pip install python-gdcm"
        raise VolumeError(f"cannot be read: {Path(file).name} {rule}")
    return np.asarray(dataset.pixel_array)


def _has_decoder(syntax: Any) -> bool:
    get_decoder, _ = optional_import("pydicom.pixels", name="get_decoder")
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
