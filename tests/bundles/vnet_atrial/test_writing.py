"""Masks in NRRD have the geometry of their scans for every reader, and are complete or not there."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.tools.shared.test_writing import SHAPE, geometry, nifti, saved
from vnet_atrial.writing import MaskWriter


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_nrrd_geometry_is_the_scans(space: str, tmp_path: Path) -> None:
    directions = Rotation.from_euler("xyz", (11, 7, 23), degrees=True).as_matrix() * 0.625
    header = {"space": space, "space directions": directions, "space origin": [123.456789012345, -2.1, 1e3]}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros(SHAPE, np.int16), header)
    mask = saved(tmp_path / "a.nrrd", tmp_path / "out", ending=".nrrd", writer=MaskWriter)
    for expected, found in zip(geometry(tmp_path / "a.nrrd"), geometry(mask), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_nifti_scan_as_nrrd(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii.gz", (0, 1))
    mask = saved(scan, tmp_path / "out", ending=".nrrd", writer=MaskWriter)
    for expected, found in zip(geometry(scan), geometry(mask), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def written(scan: Path, path: Path, shape: tuple[int, ...]) -> None:
    writer = MaskWriter(np.uint8)
    writer.set_data_array(np.zeros((1, *shape)))
    writer.set_metadata({"filename_or_obj": str(scan), "original_affine": np.eye(4)})
    writer.write(path)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A mask of another size, and one whose place is taken."""
    header = {"space": "LPS", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros(SHAPE, np.int16), header)
    with pytest.raises(ValueError, match=r"the result is \(7, 6, 4\) voxels, the scan \(7, 6, 5\)"):
        written(tmp_path / "a.nrrd", tmp_path / "b.nrrd", (7, 6, 4))
    (tmp_path / "c.nrrd").mkdir()
    with pytest.raises(OSError, match=r"c\.nrrd"):
        written(tmp_path / "a.nrrd", tmp_path / "c.nrrd", SHAPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nrrd", "c.nrrd"]
