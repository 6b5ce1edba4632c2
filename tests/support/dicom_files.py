"""Writes small DICOM series, as scanners do and as they should not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

sitk: Any = importlib.import_module("SimpleITK")  # its functions have no types

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
ROOT = "1.2.826.0.1.3680043.2.1125."
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)

Change = Callable[[int, Dataset], None]


def uid(name: str) -> str:
    """The same UID for the same name."""
    return str(generate_uid(prefix=ROOT, entropy_srcs=[name]))


def header(modality: str, *, study: str, series: str, number: int, instance: int) -> Dataset:
    """What every image of a series says."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CLASSES[modality]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(f"{study} {series} {instance}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(study), uid(f"{study} {series}")
    dataset.FrameOfReferenceUID = uid(f"{study} frame")
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = modality, number, series
    dataset.InstanceNumber = instance
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = (
        "PHANTOM1",
        "Phantom^A",
        "",
        "",
    )
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "1", ""
    dataset.StudyDate, dataset.StudyTime, dataset.PositionReferenceIndicator = "20260101", "120000", ""
    dataset.Manufacturer = "phantom"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    return dataset


def set_pixels(dataset: Dataset, pixels: Any) -> None:
    """Sets the pixels `([frames,] rows, columns)` of whole numbers."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def write_series(
    folder: Path,
    voxels: Any,
    *,
    modality: str = "MR",
    study: str = "study",
    series: str = "scan",
    number: int = 1,
    spacing: Sequence[float] = (1.5, 1.25, 4.0),
    origin: Sequence[float] = (-20.0, 10.0, 30.0),
    orientation: Sequence[float] = OBLIQUE,
    change: Change | None = None,
) -> list[Path]:
    """Writes voxels `(columns, rows, slices)`, a file for each slice, under names that say nothing of their order.

    Args:
        folder: where; it is made.
        voxels: of whole numbers.
        modality: CT or MR.
        study: a name, of which the UID is made.
        series: likewise.
        number: of the series.
        spacing: mm from column to column, row to row, slice to slice.
        origin: of the first voxel, in mm to the left, back and head.
        orientation: along a row and down a column.
        change: of each file before it is written, from the slice's number and the file.
    """
    assert voxels.shape[-1] <= 101, "names of files would repeat"
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    files = []
    for index in range(voxels.shape[-1]):
        dataset = header(modality, study=study, series=series, number=number, instance=index + 1)
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.array(origin) + index * spacing[2] * normal]
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        set_pixels(dataset, np.ascontiguousarray(voxels[..., index].T))
        if change:
            change(index, dataset)
        files.append(folder / f"IM{index * 7 % 101:03d}{number:02d}")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(folder: Path, voxels: Any, *, phases: int = 1, slope: Callable[[int], float] | None = None) -> Path:
    """Writes voxels `(columns, rows, slices * phases)` as one Enhanced MR image, the phases of a slice together."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = header("MR", study="study", series="enhanced", number=1, instance=1)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [1.25, 1.5], 4.0, 4.0
    plane.ImageOrientationPatient = list(OBLIQUE)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    frames = []
    for index in range(voxels.shape[-1]):
        frame, place, scale, content, heart = (Dataset() for _ in range(5))
        place.ImagePositionPatient = [round(float(v), 6) for v in index // phases * 4.0 * normal]
        scale.RescaleSlope, scale.RescaleIntercept = slope(index) if slope else 1.0, 0.0
        scale.RescaleType = "US"
        content.DimensionIndexValues = [index // phases + 1, index % phases + 1]
        heart.NominalCardiacTriggerDelayTime = 40.0 * (index % phases)
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [scale]
        frame.FrameContentSequence, frame.CardiacSynchronizationSequence = [content], [heart]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    set_pixels(dataset, np.ascontiguousarray(np.moveaxis(voxels, -1, 0).transpose(0, 2, 1)))
    dataset.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def write_scan(scan: Path, folder: Path, nifti: Path, *, modality: str) -> Any:
    """Writes a volume as a DICOM series called `P1 scan`, and what ITK reads of it as NIfTI, which is returned."""
    volume = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkInt16)
    voxels = sitk.GetArrayFromImage(volume).transpose(2, 1, 0)
    axes = np.array(volume.GetDirection()).reshape(3, 3)
    origin = np.array(volume.GetOrigin())
    if np.linalg.det(axes) < 0:  # slices lie the other way round in DICOM
        origin = origin + (voxels.shape[2] - 1) * volume.GetSpacing()[2] * axes[:, 2]
        voxels = voxels[..., ::-1]
    where = {"spacing": volume.GetSpacing(), "origin": origin, "orientation": (*axes[:, 0], *axes[:, 1])}
    write_series(folder, voxels, modality=modality, study="P1", series="scan", **where)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    nifti.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(reader.Execute(), str(nifti))
    return nibabel.load(nifti)
