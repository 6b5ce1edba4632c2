"""Volumes on disk: names, geometry for every reader, complete files; the module is the same in all bundles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import nibabel
import nrrd
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, SaveImaged
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tools.shared import writing
from tools.shared.evaluation import voxel_volume
from tools.shared.files import atomic_write, write_text
from tools.shared.scans import stem
from tools.shared.validation import InputError
from tools.shared.writing import ScanGridWriter, ScanLayout, check_outputs, write_volume

SHAPE = (7, 6, 5)


def geometry(path: Path) -> list[NDArray[Any]]:
    """Origin, spacing and directions as ITK sees a file."""
    image = itk.imread(str(path))
    return [np.array(image.GetOrigin()), np.array(image.GetSpacing()), itk.array_from_matrix(image.GetDirection())]


def nifti(
    path: Path, codes: tuple[int, int], *, shape: tuple[int, ...] = SHAPE, kind: Any = nibabel.Nifti1Image
) -> Path:
    """An oblique scan whose qform and sform differ, of a large origin, with these codes."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (11, 7, 23), degrees=True).as_matrix() * [-0.7, 1.1, 3.3]
    affine[:3, 3] = 123.4567, -234.5678, 1345.6789
    image = kind(np.zeros(shape, np.int16), affine)
    image.set_qform(affine, codes[0])
    affine[0, 3] += 1
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def saved(scan: Path, target: Path, *, ending: str = ".nii.gz", writer: Any = ScanGridWriter) -> Path:
    """A mask on the scan's grid, written as inference does after small errors in its affine."""
    image = LoadImage(image_only=True, ensure_channel_first=True)(scan)
    mask = MetaTensor((torch.rand(image.shape) > 0.5).to(torch.uint8), meta=image.meta)
    mask.affine = mask.affine + 1e-5
    layout = ScanLayout(target, "seg", root=scan.parent, extension=ending)
    SaveImaged("pred", writer=writer, folder_layout=layout, output_dtype=torch.uint8)({"pred": mask})
    path = target / f"{stem(scan)}_seg{ending}"
    np.testing.assert_array_equal(LoadImage(image_only=True)(path).numpy(), mask[0].numpy())
    return path


@pytest.mark.parametrize("codes", [(1, 1), (0, 0), (1, 0), (0, 2), (2, 1), (0, 4)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_geometry_is_the_scans(codes: tuple[int, int], kind: Any, tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii.gz", codes, kind=kind)
    one, other = nibabel.load(scan).header, nibabel.load(saved(scan, tmp_path / "out")).header
    for name in ("pixdim", "qform_code", "sform_code", "xyzt_units", "qoffset_x", "quatern_b", "srow_x", "srow_z"):
        np.testing.assert_array_equal(other[name].ravel()[:4], one[name].ravel()[:4])
    np.testing.assert_array_equal(other.get_best_affine(), one.get_best_affine())
    assert other.get_data_dtype() == np.uint8
    if kind is nibabel.Nifti1Image:  # ITK reads no other
        for expected, found in zip(geometry(scan), geometry(tmp_path / "out/a_seg.nii.gz"), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_one_slice_stays_a_volume(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii.gz", (1, 1), shape=(7, 6, 1))
    assert nibabel.load(saved(scan, tmp_path / "out")).shape == (7, 6, 1)


def test_mask_of_an_nrrd_scan(tmp_path: Path) -> None:
    directions = Rotation.from_euler("xyz", (11, 7, 23), degrees=True).as_matrix() * 0.625
    header = {"space": "left-posterior-superior", "space directions": directions, "space origin": [123.456, -2.1, 1e3]}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros(SHAPE, np.int16), header)
    mask = saved(tmp_path / "a.nrrd", tmp_path / "out")
    for expected, found in zip(geometry(tmp_path / "a.nrrd"), geometry(mask), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii.gz", (1, 1))
    with pytest.raises(ValueError, match=r"the result is \(7, 6, 4\) voxels, the scan \(7, 6, 5\)"):
        write_volume(tmp_path / "b.nii.gz", np.zeros((7, 6, 4), np.uint8), affine=np.eye(4), like=scan)


def test_volume_of_sheared_voxels() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    affine[0, 1] = 2.0
    assert voxel_volume(MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine)) == pytest.approx(6)


LIMITED = """
import resource, sys, numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.path.insert(0, sys.argv[1])
from tools.shared.files import write_text
from tools.shared.scans import stem
from tools.shared.writing import write_volume
noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
for path in sys.argv[2:]:
    try:
        write_text(path, "x" * 3000) if path.endswith("txt") else write_volume(path, noise, affine=np.eye(4))
    except OSError as error:
        print(error)
"""


def test_file_size_limit_leaves_the_old_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.nii", "a.nii.gz", "a.txt")]
    for path in paths:
        path.write_text("old")
    command = [sys.executable, "-c", LIMITED, str(Path(writing.__file__).parents[2]), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"[Errno 27] File too large: '{path}'" for path in paths]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.read_text() for path in paths] == ["old"] * 3


def test_errors_name_the_file_and_not_the_one_beside(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match=r"a/b\.txt"):
        write_text(tmp_path / "a/b.txt", "")
    with pytest.raises(OSError, match=r"c\.txt"), atomic_write(tmp_path / "c.txt"):
        raise OSError("a library's own")


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        ("/data/p1/lgemri.nrrd", "p1/lgemri_seg.nii.gz"),
        ("/data/1.2.840.1.nii.gz", "1.2.840.1_seg.nii.gz"),
        ("/data/scan.v2.NII", "scan.v2_seg.nii.gz"),
        ("/data/../other/p1/a.nii", "other/p1/a_seg.nii.gz"),
        ("/data/x/../p1/a.nii", "p1/a_seg.nii.gz"),
        ("/mnt/a.nii", "mnt/a_seg.nii.gz"),
        ("/data/noending", "noending_seg.nii.gz"),
        ("/data/a.b", "a.b_seg.nii.gz"),
    ],
)
def test_places_of_masks(scan: str, expected: str) -> None:
    assert ScanLayout("/out", "seg", root="/data").filename(scan) == Path("/out", expected)


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", "/etc/x", "a\\b", ""])
def test_no_name_of_a_case_leads_elsewhere(name: str) -> None:
    case = {"case": name or "x", "image": "/data/p/t1.nii.gz"}
    for root in (None, "/data"):
        path = ScanLayout("/out", "seg", root=root, by_case=True).of(case)
        assert path.resolve().is_relative_to("/out")


def test_two_cases_never_share_a_file_or_a_name(tmp_path: Path) -> None:
    step = SaveImaged("pred", writer=ScanGridWriter, folder_layout=ScanLayout(tmp_path, "seg", root="/data"))
    cases = [{"case": "a", "image": "/data/a.nii"}, {"case": "b", "image": "/data/b.nii"}]
    check_outputs(cases, Compose([step]))
    with pytest.raises(InputError, match=r"case c: /data/a.nii.gz: .* the same file as those of /data/a.nii: .*a_seg"):
        check_outputs([*cases, {"case": "c", "image": "/data/a.nii.gz"}], Compose([step]))
    with pytest.raises(InputError, match=r"case a: /data/c.nii: .* the same name as those of /data/a.nii: a"):
        check_outputs([*cases, {"case": "a", "image": "/data/c.nii"}])


def test_no_mask_lies_beside_scans(tmp_path: Path) -> None:
    """Where it might take the place of a reference, and be a scan of the next run."""
    step = SaveImaged("pred", writer=ScanGridWriter, folder_layout=ScanLayout(tmp_path, "seg", root=tmp_path))
    with pytest.raises(InputError, match="its results would lie beside scans"):
        check_outputs([{"case": "a", "image": f"{tmp_path}/a.nii"}], Compose([step]))


def test_other_formats_are_refused() -> None:
    with pytest.raises(InputError, match=r"must be one of .nii.gz, .nii, .nrrd, got .mha"):
        ScanLayout("out", "seg", extension=".mha")
