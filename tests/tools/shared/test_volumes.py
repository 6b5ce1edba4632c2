"""Volumes are read to their end, and their headers must say where the voxels lie; on files of a few voxels."""

from __future__ import annotations

import bz2
import gzip
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImage

from tools.shared import geometry, volumes

VOXELS = np.arange(4 * 5 * 60, dtype=np.int16).reshape(4, 5, 60)
TURN = np.array([[0.8, 0, 0.6, 0], [0, 1, 0, 0], [-0.6, 0, 0.8, 0], [0, 0, 0, 1]])
OBLIQUE = TURN @ np.diag([0.7, 0.8, 3, 1]) + np.array([[0, 0, 0, shift] for shift in (5, -60, 7, 0)])
HEADER = """NRRD0005
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 5 60
space directions: (0.7,0,0) (0,0.8,0) (0,0,3)
endian: little
encoding: raw
space origin: (1,2,3)
"""


def nifti(folder: Path, voxels: Any = VOXELS, affine: Any = OBLIQUE, *, name: str = "a.nii.gz") -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name)
    return folder / name


def edited(path: Path, field: str, value: Any) -> Path:
    """Replaces a field of a NIfTI header, which nibabel would not write."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    kind, offset = nibabel.Nifti1Header.template_dtype.fields[field]
    content[offset : offset + kind.itemsize] = np.asarray(value, kind.base).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def nrrd(folder: Path, *, data: bytes | None = None, header: str = HEADER) -> Path:
    path = folder / "a.nrrd"
    path.write_bytes(header.encode() + b"\n" + (VOXELS.tobytes("F") if data is None else data))
    return path


def rejection(path: Path, **options: Any) -> str:
    with pytest.raises(volumes.VolumeError) as caught:
        volumes.read_volume(path, **options)
    return str(caught.value)


def read(path: Path) -> tuple[Any, Any]:
    image = volumes.read_volume(path)
    return volumes.voxels_of(image), image.affine


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd gzip", "nrrd bzip2"])
def test_flipped_bits(kind: str, tmp_path: Path) -> None:
    """A flipped bit is found, unless it changes neither voxels nor grid (as the time in gzip's header)."""
    if kind == "nii.gz":
        path = nifti(tmp_path)
    else:
        raw = VOXELS.tobytes("F")
        packed = gzip.compress(raw) if kind.endswith("gzip") else bz2.compress(raw)
        path = nrrd(tmp_path, data=packed, header=HEADER.replace("raw", kind[5:]))
    content, (voxels, affine), rng, found = path.read_bytes(), read(path), random.Random(0), 0
    start = content.find(b"\n\n") + 2 if "nrrd" in kind else 0
    for _ in range(300):
        bit = rng.randrange(8 * start, 8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            now = read(path)
        except volumes.VolumeError:
            found += 1
        else:
            np.testing.assert_array_equal(now[0], voxels)
            np.testing.assert_array_equal(now[1], affine)
    assert found > 280


@pytest.mark.parametrize("length", [-1, 1])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_other_lengths(name: str, length: int, tmp_path: Path) -> None:
    """A file with fewer or more voxels than its header says, compressed or not."""
    path = nrrd(tmp_path) if name == "a.nrrd" else nifti(tmp_path, name=name)
    content = path.read_bytes()
    content = gzip.decompress(content) if name.endswith(".gz") else content
    content = content[:length] if length < 0 else content + b"\0"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert "cannot be read" in rejection(path)


def test_members_of_a_gzip_file(tmp_path: Path) -> None:
    """Several members are one stream, as programs write that compress in parallel; what is no member is rejected."""
    path = nifti(tmp_path)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]) + gzip.compress(b""))
    np.testing.assert_array_equal(read(path)[0], VOXELS)
    for more in (b"garbage", gzip.compress(b"more"), gzip.compress(content)):
        path.write_bytes(gzip.compress(content) + more)
        assert "cannot be read" in rejection(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "device.nrrd").symlink_to("/dev/zero")
    for name in ("pipe.nii", "folder.nii.gz", "device.nrrd"):
        assert rejection(tmp_path / name) == "is no regular file"
    assert rejection(tmp_path / "nothing.nii") == "is missing"
    (tmp_path / "a.mha").touch()
    assert rejection(tmp_path / "a.mha") == "must be one of .nii.gz, .nii, .nrrd"


@pytest.mark.parametrize("kind", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_is_no_number(kind: Any, tmp_path: Path) -> None:
    assert "must hold one real number for each voxel" in rejection(nifti(tmp_path, np.zeros((4, 5, 6), kind)))


def test_number_of_axes(tmp_path: Path) -> None:
    assert "must be a 3D or 4D volume" in rejection(nifti(tmp_path, np.zeros((4, 5, 6, 1, 2))))
    assert "must be a 3D volume" in rejection(nifti(tmp_path, np.zeros((4, 5, 6, 2))), dimensions=[3])


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0, 7, VOXELS), (np.nan, 0, VOXELS), (0.5, -1, VOXELS / 2 - 1), (np.inf, 0, None), (1, np.nan, None)],
)
def test_scale(slope: float, inter: float, expected: Any, tmp_path: Path) -> None:
    path = edited(edited(nifti(tmp_path), "scl_slope", slope), "scl_inter", inter)
    if expected is None:
        assert "finite" in rejection(path) or "intercept" in rejection(path)
    else:
        np.testing.assert_array_equal(read(path)[0], expected)


def test_as_monai_reads(tmp_path: Path) -> None:
    """What is given to the networks is what MONAI's readers give, of either byte order."""
    swapped = nibabel.Nifti1Image(VOXELS, OBLIQUE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(swapped, tmp_path / "b.nii")
    image = itk.image_from_array(VOXELS)
    image.SetSpacing([3, 0.8, 0.7])
    image.SetDirection(itk.matrix_from_array(np.array([[0.6, 0, 0.8], [0, -1, 0], [0.8, 0, -0.6]])))
    for compression in (True, False):
        itk.imwrite(image, str(tmp_path / f"{compression}.nrrd"), compression=compression)
    scaled = edited(nifti(tmp_path), "scl_slope", 0.1)
    for path in (scaled, *(tmp_path / name for name in ("b.nii", "True.nrrd", "False.nrrd"))):
        found, expected = volumes.LoadVolume(image_only=True)(path), LoadImage(image_only=True)(path)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-12)
    scaled.write_bytes(scaled.read_bytes()[:-8])
    with pytest.raises(volumes.VolumeError, match=r"a\.nii\.gz: cannot be read"):
        volumes.LoadVolumed("image")({"image": str(scaled)})


def sheared(degrees: float) -> Any:
    tilt = np.eye(4)
    tilt[1, 2] = np.tan(np.radians(degrees)) * 3 / 0.8
    return OBLIQUE @ tilt


@pytest.mark.parametrize(
    ("affine", "rule"),
    [
        (np.round(OBLIQUE, 5), None),
        (sheared(0.01), None),
        (sheared(18), "is sheared by 18 degrees, which moves corners by 29.7 mm (gantry tilt?)"),
        (sheared(-1), "is sheared by 1 degrees"),
        (OBLIQUE @ np.diag([1e-3, 1e-3, 1e-3, 1]), "has voxels of 0.0007 x 0.0008 x 0.003 mm"),
        (OBLIQUE @ np.diag([1e3, 1e3, 1e3, 1]), "has voxels of 700 x 800 x 3e+03 mm"),
        (OBLIQUE + np.array([[0, 0, 0, 6000], *[[0] * 4] * 3]), "m from the origin"),
        (OBLIQUE + np.array([[0, 0, 0, np.nan], *[[0] * 4] * 3]), "not finite"),
        (OBLIQUE @ np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "is sheared by 90 degrees"),
    ],
)
def test_grid(affine: Any, rule: str | None, tmp_path: Path) -> None:
    """Affines as an sform has them."""
    path = nifti(tmp_path)
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        edited(path, name, row)
    edited(path, "pixdim", [1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1])
    if rule is None:
        np.testing.assert_allclose(read(path)[1], affine, atol=1e-5)
    else:
        assert rule in rejection(path)


FIELDS: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "zero": ([("pixdim", [1, 0.7, 0, 3, 1, 1, 1, 1])], "has no voxel size, pixdim is"),
    "NaN": ([("pixdim", [1, 0.7, np.nan, 3, 1, 1, 1, 1])], "has no voxel size, pixdim is"),
    "metre": ([("xyzt_units", 1)], "has the unit metre"),
    "micrometre": ([("xyzt_units", 3 + 8)], "has the unit micrometre"),
    "no orientation": ([("sform_code", 0)], "does not say how it lies in the patient"),
    "two places": ([("qform_code", 1), ("qoffset_x", -40)], "lies at two places"),
    "two lengths": ([("pixdim", [1, 2.1, 2.4, 9, 1, 1, 1, 1])], "mm by its sform, of 2.1 x 2.4 x 9 mm by pixdim"),
    "pair": ([("magic", b"ni1\0")], "its voxels are in another file"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_nifti_header(name: str, tmp_path: Path) -> None:
    changes, rule = FIELDS[name]
    path = nifti(tmp_path)
    for field, value in changes:
        edited(path, field, value)
    assert rule in rejection(path)


def test_scale_of_acdc(tmp_path: Path) -> None:
    """Voxels of 1 mm in the sform and the true ones in pixdim are ACDC's; not with axes that turn them."""
    path = edited(nifti(tmp_path, affine=np.diag([-1.0, -1, 1, 1])), "pixdim", [1, 1.5, 1.5, 10, 1, 1, 1, 1])
    np.testing.assert_allclose(read(path)[1], np.diag([-1.5, -1.5, 10, 1]))
    edited(path, "quatern_b", 0.6)
    edited(path, "quatern_d", 0)
    assert "a qform that does not go with it" in rejection(path)


def changed(old: str, new: str) -> Callable[[Path], Path]:
    assert old in HEADER
    return lambda folder: nrrd(folder, header=HEADER.replace(old, new))


NRRD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "password": (changed("endian", "data file: /etc/passwd\nendian"), "its voxels are in another file, /etc/passwd"),
    "list": (changed("endian", "DATAFILE: LIST\nendian"), "its voxels are in another file, LIST"),
    "pattern": (changed("endian", "Data File: ../%03d.raw 1 60 1\nendian"), "its voxels are in another file"),
    "unknown": (changed("endian", "data-file: x\nendian"), "field 'data-file' is unknown"),
    "twice": (changed("endian", "sizes: 4 5 6\nendian"), "field 'sizes' is there twice"),
    "no directions": (changed("space directions: (0.7,0,0) (0,0.8,0) (0,0,3)\n", ""), "space directions missing"),
    "no space": (changed("space: left-posterior-superior\n", ""), "space missing"),
    "other space": (changed("left-posterior-superior", "scanner-xyz"), "space scanner-xyz does not say"),
    "centimetres": (changed("endian", 'space units: "cm" "cm" "cm"\nendian'), "its unit must be mm"),
    "in cm": (changed("(0.7,0,0)", "(0.07,0,0)"), "has voxels of 0.07 x 0.8 x 3 mm"),
    "zero": (changed("(0.7,0,0)", "(0,0,0)"), "has voxels of 0 x 0.8 x 3 mm"),
    "NaN": (changed("(0.7,0,0)", "(nan,0,0)"), "not finite"),
    "origin": (changed("(1,2,3)", "(1,2,inf)"), "not finite"),
    "sheared": (changed("(0,0,3)", "(0,1,3)"), "is sheared by 18.4 degrees"),
    "skipped": (changed("endian", "byte skip: -1\nendian"), "are skipped"),
    "text": (changed("raw", "ascii"), "encoding ascii is none of raw, gzip, bzip2"),
    "block": (changed("short", "block"), "type block is none of whole or floating-point numbers"),
    "colours": (changed("endian", "kinds: RGB-color domain domain\nendian"), "its axes must be those of space"),
    "sizes": (changed("sizes: 4 5 60", "sizes: 4 5"), "dimension is 3, sizes are 4 5"),
}


@pytest.mark.parametrize("name", NRRD)
def test_nrrd_header(name: str, tmp_path: Path) -> None:
    make, rule = NRRD[name]
    assert rule in rejection(make(tmp_path))


@pytest.mark.parametrize(("space", "signs"), [("LPS", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1))])
def test_nrrd_space(space: str, signs: tuple[int, int, int], tmp_path: Path) -> None:
    voxels, affine = read(changed("left-posterior-superior", space)(tmp_path))
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine[:3, :3], np.diag(signs) * [0.7, 0.8, 3])
    np.testing.assert_allclose(affine[:3, 3], np.multiply(signs, [1, 2, 3]))


def test_corners_of_two_grids() -> None:
    """Elements that agree to 0.01 are not enough."""
    off = np.eye(4)
    off[0, 2] = 0.0095
    assert geometry.apart(np.eye(4), off, shape=(4, 5, 301)) == pytest.approx(2.8595)
    assert not geometry.same_grid(np.eye(4), off, shape=(4, 5, 301))
    assert geometry.same_grid(np.eye(4), off, shape=(4, 5, 5))


def test_real_headers(real_data: Path) -> None:
    """Scans of all sources, and label maps on their grids."""
    for path in [*sorted(real_data.glob("*/*/*.nii.gz"))[::9], *real_data.glob("acdc_original_headers/*.nii.gz")]:
        volumes.read_volume(path)
