"""Inference on DICOM gives the masks that it gives on the same scans as NIfTI, for every bundle that takes both."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.conftest import NAMES, NamedPath, package, recipe
from tests.support.dicom_files import uid, write_scan, write_series
from tests.support.runs import copy, run
from tools import REPO

TAKES_DICOM = [name for name in NAMES if "dicom" in recipe(name)]


@pytest.mark.parametrize("bundle", TAKES_DICOM)
def test_masks_are_those_of_nifti(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """A study of several series: one fits; its mask lies where that of the same scan as NIfTI does."""
    copy(tiny_weights(bundle), tmp_path / "models")
    source = sorted(phantoms(bundle).glob(recipe(bundle)["label"]["scans"]))[0]
    modality, options = recipe(bundle)["dicom"]["modality"], recipe(bundle)["dicom"]["overrides"]
    image = write_scan(source, tmp_path / "studies/P1/scan", tmp_path / "nifti/P1.nii.gz", modality=modality)
    few = np.zeros((8, 8, 3), np.int16)
    write_series(tmp_path / "studies/P1/scout", few, study="P1", series="scout", number=9, modality=modality)
    for name in ("studies", "nifti"):
        run(
            bundle,
            "inference",
            data=tmp_path / name,
            folder=tmp_path,
            output_dir=str(tmp_path / "out" / name),
            **options,
        )
    masks = {name: only(tmp_path / "out" / name) for name in ("studies", "nifti")}
    found = {name: nibabel.load(path) for name, path in masks.items()}
    assert masks["studies"].relative_to(tmp_path / "out/studies").parts[0] == "P1"
    assert found["studies"].shape == image.shape
    np.testing.assert_allclose(found["studies"].affine, found["nifti"].affine, atol=1e-3)
    voxels = {name: np.asarray(mask.dataobj) for name, mask in found.items()}
    assert 0 < np.count_nonzero(voxels["nifti"]) < voxels["nifti"].size
    np.testing.assert_array_equal(voxels["studies"], voxels["nifti"])
    (record,) = (tmp_path / "out/studies").glob("run_*.json")
    (case,) = json.loads(record.read_text())["cases"]
    assert case["case"] == "P1"
    assert case["series"] == uid("P1 scan")
    with (tmp_path / "out/studies/report.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["P1"]


def only(folder: Path) -> Path:
    (path,) = folder.rglob("*.nii.gz")
    return path


def test_bundles_that_take_dicom_are_tested() -> None:
    assert [
        name for name in NAMES if (REPO / "bundles" / name / package(name) / "shared/dicom.py").is_file()
    ] == TAKES_DICOM


@pytest.mark.parametrize("bundle", TAKES_DICOM)
def test_refused_series_end_a_run_before_it_starts(bundle: str, tiny_weights: NamedPath, tmp_path: Path) -> None:
    def end(**options: Any) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
            run(bundle, "inference", data=tmp_path / "in", folder=tmp_path, ckpt_dir=str(weights), **options)
        error: BaseException = caught.value
        while error.__cause__ is not None and type(error).__name__ != "InputError":
            error = error.__cause__
        return str(error)

    weights, modality = tiny_weights(bundle), "CT" if bundle.endswith("_ct") else "MR"
    voxels = np.random.RandomState(0).randint(0, 99, (24, 24, 5)).astype(np.int16)
    files = write_series(tmp_path / "in/P1", voxels, modality=modality)
    write_series(tmp_path / "in/P1", voxels, modality=modality, series="other", number=2)
    assert "2 series fit, choose with series" in end()
    assert "no series has the number or UID 7" in end(series=7)
    files[2].unlink()
    message = end(series=1)
    assert "case in" in message or "case P1" in message
    assert "1 slice is missing" in message
    assert not (tmp_path / "eval").exists()
