"""DICOM series as scans: what ITK makes of them, voxel by voxel and corner by corner, or rejected with a reason."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose, SaveImaged
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from tests.support.dicom_files import OBLIQUE, uid, write_enhanced, write_series
from tools.shared.dicom import dicom_scans, find_series
from tools.shared.geometry import apart
from tools.shared.series import holds_dicom
from tools.shared.slices import read_header
from tools.shared.validation import InputError, check_cases
from tools.shared.verdicts import Verdicts
from tools.shared.volumes import LoadVolume, VolumeError, read_volume, voxels_of
from tools.shared.writing import ScanGridWriter, ScanLayout, check_outputs

sitk: Any = importlib.import_module("SimpleITK")  # its functions have no types

SHAPE = (8, 6, 5)  # columns, rows, slices
AXIAL = (1, 0, 0, 0, 1, 0)


@pytest.fixture
def voxels() -> Any:
    return np.random.RandomState(1).randint(-1000, 1000, SHAPE).astype(np.int16)


def through_itk(folder: Path, target: Path) -> Any:
    """The only series of a folder as NIfTI, by ITK, which sorts and scales by itself."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(sitk.Cast(reader.Execute(), sitk.sitkFloat32), str(target))
    return read_volume(target)


def same(one: Any, other: Any, *, rtol: float = 0.0) -> None:
    """Two volumes are equal voxel by voxel, and their corners within a hundredth of a millimetre."""
    np.testing.assert_allclose(voxels_of(one).astype(float), voxels_of(other), rtol=rtol)
    assert apart(one.affine, other.affine, shape=one.shape) < 0.01


def per_slice(index: int, dataset: Dataset) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, index - 3


def tilted(degrees: float) -> Callable[[int, Dataset], None]:
    def change(index: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [-20, 10 + index * 4 * float(np.tan(np.radians(degrees))), 30 + index * 4]

    return change


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 0.6, 0.8)])
def test_series_is_what_itk_reads(tmp_path: Path, voxels: Any, modality: str, orientation: Any) -> None:
    write_series(tmp_path / "P1", voxels, modality=modality, orientation=orientation)
    (case,) = find_series(tmp_path, modality=modality)
    assert case == {"case": "P1", "image": str(tmp_path / "P1"), "series": uid("study scan")}
    image = read_volume(case["image"])
    assert voxels_of(image).dtype == np.int16
    np.testing.assert_array_equal(voxels_of(image), voxels)
    same(image, through_itk(tmp_path / "P1", tmp_path / "itk.nii.gz"))
    loaded = LoadVolume(image_only=True)(case["image"])
    np.testing.assert_array_equal(loaded.numpy(), voxels)
    np.testing.assert_allclose(loaded.affine.numpy(), image.affine)


def test_every_slice_has_its_own_scale(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path / "P1", voxels, change=per_slice)
    image = read_volume(find_series(tmp_path, modality="MR")[0]["image"])
    np.testing.assert_array_equal(voxels_of(image), voxels * (0.5 + np.arange(5)) + (np.arange(5) - 3))
    same(image, through_itk(tmp_path / "P1", tmp_path / "itk.nii.gz"), rtol=1e-6)


def test_few_bits_of_a_number(tmp_path: Path, voxels: Any) -> None:
    """Twelve of sixteen bits, with anything in the others, as scanners write it: they are no part of the value."""

    def change(index: int, dataset: Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF | (0x5000 if index % 2 else 0)
        dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, stored.astype(np.uint16).tobytes()

    write_series(tmp_path / "P1", voxels, change=change)
    np.testing.assert_array_equal(voxels_of(read_volume(tmp_path / "P1")), voxels)
    same(read_volume(tmp_path / "P1"), through_itk(tmp_path / "P1", tmp_path / "itk.nii.gz"))


def test_missing_images_at_an_end_are_warned_of(tmp_path: Path, voxels: Any, caplog: pytest.LogCaptureFixture) -> None:
    files = write_series(tmp_path, voxels)
    files[0].unlink()
    assert find_series(tmp_path, modality="MR")
    assert not caplog.messages
    write_series(
        tmp_path, voxels, change=lambda index, dataset: setattr(dataset, "InstanceNumber", [1, 2, 3, 7, 8][index])
    )
    assert find_series(tmp_path, modality="MR")
    assert caplog.messages == [f"series {uid('study scan')}: 5 images, whose numbers run from 1 to 8: is it complete?"]


def test_mask_is_written_on_the_grid_of_the_series(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path / "in/P1", voxels)
    write_series(tmp_path / "in/P1", voxels[..., :2], series="other", number=2)
    (case,) = find_series(tmp_path / "in/P1", modality="MR", series=1)
    assert Path(case["image"]) == tmp_path / "in/P1" / uid("study scan")
    layout = ScanLayout(tmp_path / "out", "seg", root=tmp_path / "in")
    scan = LoadVolume(image_only=True, ensure_channel_first=True)(case["image"])
    writer = ScanGridWriter(np.uint8)
    writer.set_data_array((scan > 0).numpy())
    writer.set_metadata(scan.meta)
    writer.write(layout.of(case))
    mask = read_volume(layout.of(case))
    assert layout.of(case).name == f"{uid('study scan')}_seg.nii.gz"
    np.testing.assert_array_equal(voxels_of(mask), voxels > 0)
    assert apart(mask.affine, read_volume(case["image"]).affine, shape=SHAPE) < 1e-4


@pytest.mark.parametrize("phase", [0, 2])
def test_phases_are_sorted_by_time(tmp_path: Path, voxels: Any, phase: int) -> None:
    """Files of a cine series come in any order, and instance numbers need not follow the times."""
    for time in range(3):

        def change(_: int, dataset: Dataset, time: int = time) -> None:
            dataset.TriggerTime, dataset.SOPInstanceUID = (1 - time) * 33.5, f"{dataset.SOPInstanceUID[:60]}.{time}"

        write_series(tmp_path / f"P1/{time}", voxels + time, change=change)
    with pytest.raises(
        VolumeError, match=r"3 images at each of 5 positions, which differ in TriggerTime \(-33.5 to 33.5"
    ):
        read_volume(tmp_path / "P1")
    (case,) = find_series(tmp_path, modality="MR", phase=phase)
    assert case["image"].endswith(f"_phase{phase}")
    np.testing.assert_array_equal(voxels_of(read_volume(case["image"])), voxels + 2 - phase)
    (case,) = find_series(tmp_path, modality="MR", phase=3)
    with pytest.raises(VolumeError, match="choose one with phase, 0 to 2"):
        read_volume(case["image"])


def test_series_of_single_slices_become_one_stack(tmp_path: Path, voxels: Any) -> None:
    """Short-axis cine MRI often has a series for every slice."""
    for index in range(5):
        for time in range(2):

            def change(_: int, dataset: Dataset, index: int = index, time: int = time) -> None:
                dataset.ImagePositionPatient = [
                    round(float(v), 6) for v in index * 4 * np.cross(OBLIQUE[:3], OBLIQUE[3:])
                ]
                dataset.TriggerTime, dataset.SOPInstanceUID = 40 * time, f"{dataset.SOPInstanceUID[:60]}.{time}"

            folder = tmp_path / f"P1/SAX{index}/{time}"
            write_series(folder, voxels[..., [index]] + time, series=f"SAX_b{index}", number=11 + index, change=change)
    with pytest.raises(
        InputError, match=r"no series fits, choose with series \(several, if they are the slices of one stack"
    ) as told:
        find_series(tmp_path, modality="MR")
    assert "series 13: MR, 'SAX_b2', 2 images of 8x6 at 1 positions" in str(told.value)
    (case,) = find_series(tmp_path, modality="MR", series="15,11,12,14,13", phase=1)
    assert case["image"] == str(tmp_path / "P1/15+11+12+14+13_phase1")
    np.testing.assert_array_equal(voxels_of(read_volume(case["image"])), voxels + 1)
    (case,) = find_series(tmp_path, modality="MR", series=[11, 12, 14, 15], phase=0)
    with pytest.raises(VolumeError, match="a gap, where 1 slice is missing"):
        read_volume(case["image"])


def test_stack_with_a_series_that_has_no_number(tmp_path: Path, voxels: Any) -> None:
    def change(index: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0, 0, 4 * places.index(dataset.SeriesDescription)]
        if dataset.SeriesDescription == "low":
            del dataset.SeriesNumber

    places = ["low", "high"]
    for place, name in enumerate(places):
        write_series(tmp_path / name, voxels[..., [place]], series=name, orientation=AXIAL, change=change)
    (case,) = find_series(tmp_path, modality="MR", series=[uid(f"study {name}") for name in places])
    np.testing.assert_array_equal(voxels_of(read_volume(case["image"])), voxels[..., :2])


def test_there_is_no_second_phase_of_one_image(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path, voxels)
    (case,) = find_series(tmp_path, modality="MR", phase=1)
    with pytest.raises(VolumeError, match="holds 1 images at each of 5 positions: choose one with phase, 0 to 0"):
        read_volume(case["image"])


@pytest.mark.parametrize("phases", [1, 3])
def test_many_images_in_one_file(tmp_path: Path, phases: int) -> None:
    """An Enhanced MR image is what highdicom makes of it; of several phases one is chosen."""
    highdicom = pytest.importorskip("highdicom")
    stored = np.random.RandomState(1).randint(0, 1000, (8, 6, 4 * phases)).astype(np.uint16)
    file = write_enhanced(tmp_path / "P1", stored, phases=phases, slope=lambda index: 1.0 + index)
    (case,) = find_series(tmp_path, modality="MR", phase=None if phases == 1 else 2)
    image = read_volume(case["image"])
    chosen = np.arange(4) * phases + phases - 1
    np.testing.assert_array_equal(voxels_of(image), stored[..., chosen] * (1.0 + chosen))
    if phases == 1:
        volume = highdicom.imread(file).get_volume(apply_real_world_transform=False).flip_spatial(0)
        affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]
        np.testing.assert_array_equal(volume.array.transpose(2, 1, 0), voxels_of(image))
        assert apart(image.affine, affine, shape=image.shape) < 1e-3


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_compressed_series(tmp_path: Path, syntax: UID) -> None:
    """Every lossless compression gives the voxels back, and each slice its scale."""
    voxels = np.random.RandomState(1).randint(-1000, 1000, (48, 64, 3)).astype(np.int16)
    for file in write_series(tmp_path / "P1", voxels, change=per_slice):
        compress(file, syntax)
        assert dcmread(file).file_meta.TransferSyntaxUID == syntax
    image = read_volume(tmp_path / "P1")
    np.testing.assert_array_equal(voxels_of(image), voxels * (0.5 + np.arange(3)) + (np.arange(3) - 3))


def compress(file: Path, syntax: str) -> None:
    gdcm: Any = importlib.import_module("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


class TestChoice:
    def test_one_fitting_series_of_every_study(self, tmp_path: Path, voxels: Any) -> None:
        """Localizers, documents and other modalities are passed over; patients are named after their folders."""
        for patient in ("A", "B.1"):
            study = tmp_path / patient / "study"
            write_series(study / "1", voxels[..., :3], study=patient, series="3-plane loc", number=1)
            write_series(study / "2", voxels, study=patient, series="LGE", number=2)
            write_series(study / "3", voxels, study=patient, modality="CT", series="CT", number=3)
            write_series(study / "4", voxels[..., :1], study=patient, series="single", number=4)
            write_series(study / "5", voxels, study=patient, series="capture", number=5, change=capture)
        (tmp_path / "A/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / "A/readme.txt").write_text("no DICOM")
        cases = find_series(tmp_path, modality="MR")
        assert [case["case"] for case in cases] == ["A", "B.1"]
        assert [Path(case["image"]) for case in cases] == [tmp_path / name / "study/2" for name in ("A", "B.1")]
        assert [case["case"] for case in find_series(tmp_path / "A", modality="CT")] == ["study"]

    def test_several_are_listed(self, tmp_path: Path, voxels: Any) -> None:
        for number, name in enumerate(("fat", "water"), 7):
            write_series(tmp_path, voxels, series=name, number=number)
        with pytest.raises(InputError, match="2 series fit, choose with series") as told:
            find_series(tmp_path, modality="MR")
        for number, name in enumerate(("fat", "water"), 7):
            line = f"series {number}: MR, '{name}', 5 images of 8x6 at 5 positions, {uid(f'study {name}')}: fits"
            assert line in str(told.value)
        for choice in (8, "8", uid("study water"), [uid("study water")]):
            (case,) = find_series(tmp_path, modality="MR", series=choice)
            assert case == {
                "case": tmp_path.name, "image": str(tmp_path / uid("study water")), "series": uid("study water")
            }  # fmt: skip
        for wrong in ("9", "1.2.3"):
            with pytest.raises(InputError, match=f"no series has the number or UID {wrong}"):
                find_series(tmp_path, modality="MR", series=wrong)
        for wrong in ("water", "7,7", "7;8"):
            with pytest.raises(InputError, match="must be UIDs or numbers of series, each once"):
                find_series(tmp_path, modality="MR", series=wrong)
        with pytest.raises(InputError, match="no series fits"):
            find_series(tmp_path, modality="CT")
        for phase in (-1, "early"):
            with pytest.raises(InputError, match="phase: must be a whole number from 0"):
                find_series(tmp_path, modality="MR", phase=phase)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="series 7 is MR"):
            find_series(tmp_path, modality="CT", series=7)

    def test_one_file_means_its_series(self, tmp_path: Path, voxels: Any) -> None:
        files = write_series(tmp_path, voxels)
        write_series(tmp_path, voxels, series="other", number=2)
        assert holds_dicom(files[3])
        with pytest.raises(InputError, match="is one file, whose series is meant"):
            find_series(files[3], modality="MR", series=2)
        (case,) = find_series(files[3], modality="MR")
        np.testing.assert_array_equal(voxels_of(read_volume(case["image"])), voxels)

    def test_two_visits_in_one_folder(self, tmp_path: Path, voxels: Any) -> None:
        for study in ("first", "second"):
            write_series(tmp_path / "P1" / study, voxels, study=study)
        assert [case["case"] for case in find_series(tmp_path, modality="MR")] == ["P1_first", "P1_second"]
        (case,) = find_series(tmp_path, modality="MR", series=uid("second scan"))
        assert case["case"] == "P1"

    def test_volumes_beside_dicom_are_refused(self, tmp_path: Path, voxels: Any) -> None:
        write_series(tmp_path / "dicom", voxels)
        (tmp_path / "P2.nii.gz").touch()
        with pytest.raises(InputError, match=r"holds DICOM and volumes, for example P2.nii.gz"):
            find_series(tmp_path, modality="MR")
        (tmp_path / "P2.nii.gz").rename(tmp_path / "dicom_seg.nii.gz")  # a result
        assert len(find_series(tmp_path, modality="MR")) == 1

    def test_folders_without(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").touch()
        (tmp_path / "short.dcm").write_bytes(b"DICM")
        assert not holds_dicom(tmp_path)
        assert dicom_scans(tmp_path, modality="MR") is None
        assert dicom_scans(tmp_path / "nothing", modality="MR") is None
        for options in ({"series": 1}, {"phase": 0}):
            with pytest.raises(InputError, match="holds no DICOM, of which series and phase choose"):
                dicom_scans(tmp_path, modality="MR", **options)


def capture(_: int, dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def changed(attribute: str, value: Any, *, at: int | None = 2) -> Callable[[int, Dataset], None]:
    """Sets, or with `None` removes, an attribute of one slice, or of all."""

    def change(index: int, dataset: Dataset) -> None:
        if at is None or index == at:
            if value is None:
                delattr(dataset, attribute)
            else:
                setattr(dataset, attribute, value)

    return change


def moved(*millimetres: float) -> Callable[[int, Dataset], None]:
    def change(index: int, dataset: Dataset) -> None:
        if index == 2:
            dataset.ImagePositionPatient = list(np.add(dataset.ImagePositionPatient, millimetres))

    return change


def doubled(index: int, dataset: Dataset) -> None:
    if index in (2, 3):
        dataset.ImagePositionPatient = [-20, 10, 38]


def of_kinds(index: int, dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [-20, 10, 30 + 4 * (index // 2)]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "MP"[index % 2]]


INVALID: dict[str, tuple[Callable[[int, Dataset], None], str]] = {
    "tilted gantry": (tilted(15), "sheared by 15 degrees"),
    "a slice moved along": (moved(0, 0, 1), r"not evenly apart: IM\d+ and IM\d+ are [35] mm apart"),
    "a slice moved aside": (moved(0.2, 0, 0), "moved within their plane, by up to 0.2 mm: IM01401"),
    "two at one position": (doubled, "1 to 2 images at one position, 2 where IM01401, IM02101 lie"),
    "two of all": (
        lambda index, dataset: changed("ImagePositionPatient", [0, 0, 4 * (index // 2)], at=None)(index, dataset),
        "2 images at each of 2 positions, which differ in InstanceNumber",
    ),
    "two kinds": (of_kinds, r"several kinds at one position, ORIGINAL\\PRIMARY\\M and ORIGINAL\\PRIMARY\\P"),
    "all at one position": (changed("ImagePositionPatient", [0, 0, 0], at=None), "images of one position"),
    "one image twice": (changed("SOPInstanceUID", "1.2.3", at=None), "one image twice: IM00001 and IM00701"),
    "two orientations": (changed("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), "one orientation: IM00001"),
    "skewed axes": (changed("ImageOrientationPatient", [1, 0, 0, 0.1, 1, 0], at=None), "no unit vectors"),
    "two voxel sizes": (changed("PixelSpacing", [1.5, 1.25]), "more than one voxel size: IM00001 and IM01401"),
    "two frames of reference": (changed("FrameOfReferenceUID", "1.2.3"), "more than one frame of reference: IM00001"),
    "no position": (changed("ImagePositionPatient", None), "ImagePositionPatient is missing: IM01401"),
    "no orientation": (changed("ImageOrientationPatient", None, at=None), "ImageOrientationPatient is missing"),
    "no spacing": (changed("PixelSpacing", None, at=None), "PixelSpacing is missing"),
    "spacing of metres": (changed("PixelSpacing", [0.0015, 0.0012], at=None), "those of scans are 0.2 to 25 mm"),
    "colour": (changed("PhotometricInterpretation", "RGB", at=None), "one brightness for each pixel, not RGB"),
    "inverted": (changed("PhotometricInterpretation", "MONOCHROME1", at=None), "not MONOCHROME1"),
    "a capture": (capture, "no CT or MR image"),
    "a mosaic": (changed("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], at=None), "mosaic"),
    "no sense in the scale": (changed("RescaleSlope", 0), "slope 0 and intercept 0"),
    "several frames without places": (changed("NumberOfFrames", 2), "does not say where each lies"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID)
def test_refused(tmp_path: Path, voxels: Any, kind: str) -> None:
    """The case, the folder and the rule, with the names of files; a run that checks its scans does not start."""
    change, rule = INVALID[kind]
    write_series(
        tmp_path / "P1",
        voxels[..., :4] if kind in ("two of all", "two kinds") else voxels,
        orientation=AXIAL,
        change=change,
    )
    with pytest.raises(InputError, match=f"case P1: {tmp_path / 'P1'}: image .*{rule}"):
        check_cases([[{"case": "P1", "image": str(tmp_path / "P1")}]], label=None)


def test_missing_slices_are_named(tmp_path: Path, voxels: Any) -> None:
    files = write_series(tmp_path / "P1", voxels, orientation=AXIAL)
    files[2].unlink()
    with pytest.raises(
        VolumeError, match="a gap, where 1 slice is missing: IM00701 and IM02101 are 8 mm apart, others 4 mm"
    ):
        read_volume(tmp_path / "P1")


def test_sizes_differ(tmp_path: Path, voxels: Any) -> None:
    files = write_series(tmp_path / "P1", voxels)
    write_series(tmp_path / "other", voxels[:6])[3].replace(files[3])
    with pytest.raises(VolumeError, match=r"more than one size: IM00001 and IM02101, \(6, 8\) and \(6, 6\)"):
        read_volume(tmp_path / "P1")


@pytest.mark.parametrize("kept", [100, 140, 400, 1100, -1])
def test_cut_files_are_refused(tmp_path: Path, voxels: Any, kept: int) -> None:
    """Wherever a file ends; what is no longer a DICOM file at all leaves a gap."""
    files = write_series(tmp_path / "P1", voxels, orientation=AXIAL)
    files[2].write_bytes(files[2].read_bytes()[:kept])
    with pytest.raises((VolumeError, InputError), match=r"IM01401|1 slice is missing"):
        read_volume(find_series(tmp_path, modality="MR")[0]["image"])
    files[2].rename(files[2].with_suffix(".dcm"))
    with pytest.raises((VolumeError, InputError), match="IM01401"):
        read_volume(find_series(tmp_path, modality="MR")[0]["image"])


def test_missing_decoder_is_named(tmp_path: Path, voxels: Any) -> None:
    for file in write_series(tmp_path / "P1", voxels):
        dataset = dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        dataset.save_as(file)
    with pytest.raises(VolumeError, match=r"IM00001 is compressed as MPEG-4.*pip install python-gdcm"):
        read_volume(tmp_path / "P1")


def test_missing_package_is_named(tmp_path: Path, voxels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "P1", voxels)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert holds_dicom(tmp_path)
    with pytest.raises(InputError, match=f"^1 problem.*\n  {tmp_path}: is DICOM, which needs .*pip install pydicom"):
        find_series(tmp_path, modality="MR")


def test_changed_slice_is_checked_again(tmp_path: Path, voxels: Any) -> None:
    files = write_series(tmp_path / "P1", voxels)
    write_series(tmp_path / "P1", voxels, series="other", number=2)
    for image in (tmp_path / "P1", tmp_path / "P1" / uid("study scan"), tmp_path / "P1/1+2_phase0"):
        case = {"case": "P1", "image": str(image)}
        before = Verdicts({}).key(case)
        assert Verdicts({}).key(case) == before
        dataset = dcmread(files[1])
        dataset.InstanceNumber = int(dataset.InstanceNumber) + 1
        dataset.save_as(files[1])
        assert Verdicts({}).key(case) != before
        assert read_header(files[1]).slices[0].order[-1] == dataset.InstanceNumber


def test_results_do_not_lie_in_a_series(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path / "P1", voxels)
    (case,) = find_series(tmp_path / "P1", modality="MR")
    for output, rejected in ((tmp_path / "P1", True), (tmp_path, True), (tmp_path / "out", False)):
        saver = Compose([SaveImaged("pred", folder_layout=ScanLayout(output, "seg", root=tmp_path / "P1"))])
        if rejected:
            with pytest.raises(InputError, match="choose another output_dir"):
                check_outputs([case], saver)
        else:
            check_outputs([case], saver)
