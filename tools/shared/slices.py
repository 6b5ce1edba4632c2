"""The slices of DICOM images, single or many in a file: what their headers say of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import

from .volumes import VolumeError, reason

__all__ = ["ORDER", "Header", "Slice", "is_dicom", "pydicom_module", "read_header", "reading"]

# Kinds of files (SOPClassUID): CT and MR with one image, and with many.
CLASSIC = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"}
ENHANCED = {
    *("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"),
    *("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"),
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
SEQUENCES = {  # of what has the same keyword in both
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
PLACES = ORDER | {keyword: (sequence, keyword) for keyword, sequence in SEQUENCES.items()}
LENGTHS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")
SIZES = ("Rows", "Columns", "BitsAllocated")
TEXTS = (*NEEDED, "SOPInstanceUID", "SeriesDescription", "Modality", "FrameOfReferenceUID")
TAGS = [
    *(*TEXTS, *SIZES, *PLACES, "SeriesNumber", "ImageType", "NumberOfFrames", "SamplesPerPixel", "PixelRepresentation"),
    *("PhotometricInterpretation", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

# What keeps the images of a file from being those of a scan, and what is said then; the first that is so counts.
PROBLEMS: Sequence[tuple[Callable[[Any], Any], str]] = (
    (lambda file: file.SOPClassUID not in CLASSIC | ENHANCED, "is no CT or MR image ({kind})"),
    (
        lambda file: file.get("SamplesPerPixel", 1) != 1 or file.get("PhotometricInterpretation") != "MONOCHROME2",
        "must hold one brightness for each pixel, not {photometric}",
    ),
    (lambda file: "MOSAIC" in (file.get("ImageType") or ()), "is a mosaic of slices"),
    (
        lambda file: file.get("ModalityLUTSequence"),
        "has a table for its values (ModalityLUTSequence) instead of a slope",
    ),
    (lambda file: not all(map(file.get, SIZES)), "does not say how large it is (Rows, Columns, BitsAllocated)"),
    (
        lambda file: file.SOPClassUID in CLASSIC and int(file.get("NumberOfFrames") or 1) > 1,
        "holds several images, and does not say where each lies",
    ),
)


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

    def name(self) -> str:
        """The file, for messages."""
        return Path(self.file).name


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
    with reading():
        found = os.stat(path)  # noqa: PTH116
        return _read(str(path), (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


@contextmanager
def reading(name: str = "") -> Iterator[None]:
    """Makes whatever keeps a file from being read a `VolumeError`, with the file's name if it is given."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"cannot be read{name and f': {name}'} ({reason(error)})") from error


@lru_cache(maxsize=2**14)
def _read(path: str, _: Sequence[int]) -> Header:
    pydicom = pydicom_module()
    if not is_dicom(path):
        raise VolumeError("is called as DICOM is, and is none")
    return _header(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS))


def pydicom_module() -> Any:
    """Returns pydicom.

    Raises:
        VolumeError: when it is not installed; it says how to install it.
    """
    module, found = optional_import("pydicom")
    if not found:
        raise VolumeError("is DICOM, which needs packages that are not installed: pip install pydicom python-gdcm")
    return module


def _header(path: str, dataset: Any) -> Header:
    texts = {name: str(dataset.get(name) or "") for name in TEXTS}
    if missing := [name for name in NEEDED if not texts[name]]:
        raise VolumeError(f"is no complete DICOM file, {missing[0]} is missing")
    slices, problem = _slices_or_problem(path, dataset)
    number = dataset.get("SeriesNumber")
    kind = {None: "f", 0: "u"}.get(dataset.get("PixelRepresentation"), "i")  # floats do not say if they are signed
    rows, columns, bits = (int(dataset.get(name) or 0) for name in SIZES)
    return Header(
        file=path,
        study=texts["StudyInstanceUID"],
        series=texts["SeriesInstanceUID"],
        uid=texts["SOPInstanceUID"],
        number=None if number is None else int(number),
        description=texts["SeriesDescription"],
        modality=texts["Modality"],
        reference=texts["FrameOfReferenceUID"],
        size=(rows, columns),
        dtype=f"{kind}{bits // 8}",
        slices=slices,
        problem=problem,
    )


def _slices_or_problem(path: str, dataset: Any) -> tuple[tuple[Slice, ...], str]:
    """Returns the images of a file, or none and why they are none of a scan."""
    if rule := next((rule for holds, rule in PROBLEMS if holds(dataset)), ""):
        kind = getattr(dataset.SOPClassUID, "name", str(dataset.SOPClassUID)).removesuffix(" Storage")
        return (), rule.format(kind=kind, photometric=dataset.get("PhotometricInterpretation"))
    try:
        return tuple(_slices(path, dataset)), ""
    except VolumeError as error:
        return (), str(error)
    except (TypeError, ValueError) as error:
        return (), f"has a damaged header ({reason(error)})"


def _slices(path: str, dataset: Any) -> Iterator[Slice]:
    images = [dataset] if dataset.SOPClassUID in CLASSIC else _frames(dataset)
    for index, image in enumerate(images):
        position, orientation, spacing = (_numbers(name, image.get(name)) for name in LENGTHS)
        scale = _scale(image.get("RescaleSlope"), image.get("RescaleIntercept"))
        *order, number = (None if value is None else float(value) for value in map(image.get, ORDER))
        order.append(float(index) if number is None else number)
        kind = tuple(map(str, image.get("ImageType") or ()))
        yield Slice(path, index, position, orientation, spacing, scale, tuple(order), kind)


def _frames(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yields what a file says of each of many images, by the keywords of a file of one."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise VolumeError(f"holds {dataset.get('NumberOfFrames')} images, and says of {len(frames)} where they lie")
    for frame in frames:
        find = partial(_find, (frame, shared))
        kind = find("MRImageFrameTypeSequence", "FrameType") or find("CTImageFrameTypeSequence", "FrameType")
        image = {name: find(*place) for name, place in PLACES.items()}
        yield image | {"ImageType": kind or dataset.get("ImageType")}


def _find(groups: Sequence[Any], sequence: str, keyword: str) -> Any:
    """Returns what a frame says, else what all share."""
    items = [group.get(sequence) for group in groups]
    values = (found[0].get(keyword) for found in items if found)
    return next((value for value in values if value is not None), None)


def _scale(slope: Any, intercept: Any) -> tuple[float, float]:
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise VolumeError(f"has a scale without sense, slope {scale[0]:g} and intercept {scale[1]:g}")
    return scale


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values or ())
    if len(numbers) != LENGTHS[name] or not np.isfinite(numbers).all():
        raise VolumeError(f"does not say where it lies in the patient, {name} is {list(numbers) or 'missing'}")
    return numbers
