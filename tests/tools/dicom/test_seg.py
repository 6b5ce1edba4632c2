"""DICOM SEG of a mask: read back with highdicom, it has the mask's voxels, the codes and the places in the patient."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.sr.codedict import codes

from tests.support.dicom_files import OBLIQUE, uid, write_enhanced, write_series
from tools import REPO
from tools.dicom.seg import seg
from tools.shared.dicom import read_series
from tools.shared.geometry import apart
from tools.shared.writing import write_volume

SHAPE = (8, 6, 5)
HEART = "cooperative_training_acdc_mri"
KNOWN = ("LeftAtrium", "RightVentricle", "LeftVentricleMyocardium", "LeftVentricle", "Kidney", "Neoplasm")
BUNDLES = [path.parent.name for path in sorted(REPO.glob("tools/per_bundle/*/dicom.yaml"))]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A series in a study, and a mask of 0 to 3 on its grid."""
    voxels = np.random.RandomState(1).randint(0, 1000, SHAPE).astype(np.int16)
    write_series(tmp_path / "study/1", voxels)
    write_series(tmp_path / "study/2", voxels[..., :1], series="single", number=2)
    write_mask(tmp_path / "mask_seg.nii.gz", tmp_path / "study/1")
    return tmp_path


def write_mask(file: Path, series: Path, *, values: int = 4) -> Any:
    scan = read_series(series)
    assert scan is not None
    labels = np.random.RandomState(2).randint(0, values, scan.shape).astype(np.uint8)
    labels[..., 0] = 0  # frames without anything are left out
    write_volume(file, labels, affine=scan.affine)
    return labels


def test_it_has_the_masks_voxels_at_their_places(study: Path) -> None:
    labels = write_mask(study / "mask_seg.nii.gz", study / "study/1")
    seg(str(study / "mask_seg.nii.gz"), str(study / "study"), output=str(study / "seg.dcm"), bundle=HEART)
    found = highdicom.seg.segread(study / "seg.dcm")
    sources = sorted(
        (dcmread(file) for file in (study / "study/1").iterdir()), key=lambda source: source.InstanceNumber
    )
    by_source = found.get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources[1:]], combine_segments=True
    )
    np.testing.assert_array_equal(by_source, labels.transpose(2, 1, 0)[1:])
    volume = found.get_volume(combine_segments=True).flip_spatial(0)
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]
    scan = read_series(study / "study/1")
    assert scan is not None
    affine[:3, 3] -= affine[:3, 2]  # without the empty first slice
    assert apart(affine, scan.affine, shape=SHAPE) < 0.01
    assert found.FrameOfReferenceUID == uid("study frame")
    assert found.PatientID == "PHANTOM1"
    assert found.StudyInstanceUID == uid("study")
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == uid("study scan")
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in sources
    }
    places = [
        (frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
         frame.FrameContentSequence[0].DimensionIndexValues[-1])
        for frame in found.PerFrameFunctionalGroupsSequence
    ]  # fmt: skip
    assert places == sorted(places)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_segments_are_coded(bundle: str, study: Path) -> None:
    """Every label of the bundle has a segment, with codes that the standard knows, and the algorithm's version."""
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text())
    if metadata["network_data_format"]["inputs"]["image"]["modality"] == "CT":
        voxels = np.random.RandomState(1).randint(0, 1000, SHAPE).astype(np.int16)
        write_series(study / "ct", voxels, modality="CT")
        (study / "study").rename(study / "mr")
        (study / "ct").rename(study / "study")
    outputs = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    series = study / "study" if (study / "mr").exists() else study / "study/1"
    write_mask(study / "mask_seg.nii.gz", series, values=len(outputs))
    seg(str(study / "mask_seg.nii.gz"), str(study / "study"), output=str(study / "seg.dcm"), bundle=bundle)
    found = highdicom.seg.segread(study / "seg.dcm")
    structures = yaml.safe_load((REPO / "tools/per_bundle" / bundle / "dicom.yaml").read_text())
    assert [str(number) for number in found.segment_numbers] == [value for value in outputs if value != "0"]
    assert len({found.get_segment_description(number).tracking_uid for number in found.segment_numbers}) == len(
        structures
    )
    for number in found.segment_numbers:
        segment = found.get_segment_description(number)
        assert segment.segment_label == structures[number]["label"]
        assert segment.segmented_property_type.value == structures[number]["type"][0]
        assert segment.segmented_property_category in (
            codes.cid7150.AnatomicalStructure, codes.cid7150.MorphologicallyAbnormalStructure
        )  # fmt: skip
        assert segment.segmented_property_type.value in {getattr(codes.SCT, name).value for name in KNOWN}
        algorithm = segment.algorithm_identification
        assert (algorithm.name, algorithm.version) == (metadata["name"], metadata["version"])
        assert segment.tracking_id == f"{bundle} {structures[number]['label']}"
    assert (found.ManufacturerModelName, found.SoftwareVersions) == (bundle, metadata["version"])
    assert str(found.ContentDescription).startswith("Research only")


def test_bundles_with_codes() -> None:
    assert BUNDLES == [HEART, "ensemble_kd_kits_ct", "vnet_atrial_mri"]


@pytest.mark.parametrize("phase", [None, 1])
def test_many_images_in_one_file(tmp_path: Path, phase: int | None) -> None:
    phases = 1 if phase is None else 3
    stored = np.random.RandomState(1).randint(0, 1000, (8, 6, 4 * phases)).astype(np.uint16)
    file = write_enhanced(tmp_path / "study", stored, phases=phases)
    name = tmp_path / "study" if phase is None else tmp_path / f"study/{dcmread(file).SeriesInstanceUID}_phase{phase}"
    labels = write_mask(tmp_path / "mask.nii.gz", name)
    seg(
        str(tmp_path / "mask.nii.gz"),
        str(tmp_path / "study"),
        output=str(tmp_path / "seg.dcm"),
        bundle=HEART,
        phase=phase,
    )
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    numbers = [index * phases + (phase or 0) + 1 for index in range(1, 4)]
    frames = found.get_pixels_by_source_frame(dcmread(file).SOPInstanceUID, numbers, combine_segments=True)
    np.testing.assert_array_equal(frames, labels.transpose(2, 1, 0)[1:])


def test_stack_of_several_series(tmp_path: Path) -> None:
    """Short-axis cine MRI with a series for every slice: the SEG refers to all of them."""
    voxels = np.random.RandomState(1).randint(0, 1000, SHAPE).astype(np.int16)
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    for index in range(5):
        origin = (index * 4 * normal).tolist()
        write_series(
            tmp_path / f"study/{index}", voxels[..., [index]], series=f"b{index}", number=1 + index, origin=origin
        )
    labels = write_mask(tmp_path / "mask.nii.gz", tmp_path / "study/1+2+3+4+5")
    options: Any = {"bundle": HEART, "number": "1,2,3,4,5", "output": str(tmp_path / "seg.dcm")}
    seg(str(tmp_path / "mask.nii.gz"), str(tmp_path / "study"), **options)
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    volume = found.get_volume(combine_segments=True).flip_spatial(0)
    np.testing.assert_array_equal(volume.array, labels.transpose(2, 1, 0)[1:])
    series = [item.SeriesInstanceUID for item in found.ReferencedSeriesSequence]
    assert sorted(series) == sorted(uid(f"study b{index}") for index in range(5))
    assert all(len(item.ReferencedInstanceSequence) == 1 for item in found.ReferencedSeriesSequence)


def test_bundle_is_that_of_the_run(study: Path) -> None:
    (study / "run_inference_20260101_000000_0.json").write_text(json.dumps({"bundle": {"name": HEART}}))
    seg(str(study / "mask_seg.nii.gz"), str(study / "study/1"), output=str(study / "seg.dcm"))
    assert dcmread(study / "seg.dcm").ManufacturerModelName == HEART


def rejection(study: Path, *, series: str = "study/1", **options: Any) -> str:
    options = {"bundle": HEART, **options}
    with pytest.raises(ValueError, match=r".") as caught:
        seg(str(study / "mask_seg.nii.gz"), str(study / series), output=str(study / "seg.dcm"), **options)
    assert not (study / "seg.dcm").exists()
    return str(caught.value)


class TestRefused:
    def test_mask_of_another_grid(self, study: Path) -> None:
        scan = read_series(study / "study/1")
        assert scan is not None
        moved = scan.affine.copy()
        moved[0, 3] += 0.5
        write_volume(study / "mask_seg.nii.gz", np.ones(SHAPE, np.uint8), affine=moved)
        assert "mask_seg.nii.gz: is not on the grid of the series, corners are up to 0.5 mm apart" in rejection(study)
        write_volume(study / "mask_seg.nii.gz", np.ones((8, 6, 4), np.uint8), affine=scan.affine)
        assert "has (8, 6, 4) voxels, the series (8, 6, 5)" in rejection(study)

    def test_other_values(self, study: Path) -> None:
        assert "holds the values [2, 3], the bundle gives 0 and 1" in rejection(study, bundle="vnet_atrial_mri")

    def test_other_bundles(self, study: Path) -> None:
        assert "bundle must be one of cooperative_training" in rejection(study, bundle="hadnet_brats_mri")
        assert "no record of a run lies in a folder above it, say --bundle" in rejection(study, bundle=None)

    def test_other_series(self, study: Path) -> None:
        assert "series 1 is MR" in rejection(study, bundle="ensemble_kd_kits_ct", number=1)
        named = f"study/{uid('study scan')}"
        assert "is MR, the structures of ensemble_kd" in rejection(study, bundle="ensemble_kd_kits_ct", series=named)
        assert "is missing" in rejection(study, series="nothing")
        sorted((study / "study/1").iterdir())[2].unlink()
        assert "1 slice is missing" in rejection(study)

    def test_missing_packages(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "highdicom", None)
        assert "highdicom needs packages that are not installed: pip install highdicom" in rejection(study)
