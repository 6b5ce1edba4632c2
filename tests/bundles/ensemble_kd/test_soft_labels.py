"""Soft labels of ensemble_kd_kits_ct on disk: what is written is read, on its grid and no other."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from ensemble_kd.checks import check_scans
from ensemble_kd.data import soft_label_file
from ensemble_kd.shared.validation import InputError
from ensemble_kd.soft_labels import LoadSoftLabelsd, SaveMapsd, grid_of, problem_of_soft_labels
from tools import REPO

Item = dict[Hashable, Any]
SHAPE = (5, 4, 6)
EXACT = {"float32": 0.0, "uint16": 8e-6, "uint8": 2e-3}
each_dtype = pytest.mark.parametrize("dtype", EXACT)


def rotated(spacing: Sequence[float], degrees: Sequence[float] = (10, 20, 30)) -> torch.Tensor:
    """Affine of an oblique scan."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix * spacing
    affine[:3, 3] = (-30.5, 12.25, 700.125)
    return torch.from_numpy(affine)


AFFINE = rotated((1.5, 1.5, 2.5))
GRID = (SHAPE, AFFINE)


def probabilities(classes: int = 3, shape: Sequence[int] = SHAPE) -> torch.Tensor:
    torch.manual_seed(0)
    return (4 * torch.randn(classes, *shape)).softmax(0)


def saved(folder: Path, maps: torch.Tensor, *, affine: torch.Tensor = AFFINE, **options: Any) -> Path:
    """The file of case `a`."""
    item: Item = {"soft": MetaTensor(maps, affine=affine), "case": "a"}
    given = {"file": lambda case, kind: soft_label_file(folder, case, kind=kind), **options}
    found = SaveMapsd("soft", **given)(item)
    assert found["soft"] is item["soft"]
    return soft_label_file(folder, "a", kind=options.get("kinds", "soft"))


def loaded(path: Path, affine: torch.Tensor = AFFINE, shape: Sequence[int] = SHAPE) -> MetaTensor:
    image = MetaTensor(torch.zeros(1, *shape), affine=affine)
    found: MetaTensor = LoadSoftLabelsd("soft")({"case": "a", "image": image, "soft": str(path)})["soft"]
    return found


@each_dtype
def test_round_trip(dtype: str, tmp_path: Path) -> None:
    maps = probabilities()
    maps[:, 0, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    path = saved(tmp_path, maps, dtype=dtype)
    file = nibabel.load(path)
    assert file.get_data_dtype() == np.dtype(dtype)
    assert file.shape == (*SHAPE, 3)
    assert problem_of_soft_labels(path, classes=3, grid=GRID) is None
    found = loaded(path)
    assert found.dtype == torch.float32
    assert (found.as_tensor() - maps).abs().max() <= EXACT[dtype]
    assert found[:, 0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(file.affine, AFFINE, rtol=0, atol=1e-4)
    assert torch.equal(found.affine, AFFINE)


def test_whole_numbers_cannot_do_better_nor_wrap_around(tmp_path: Path) -> None:
    maps = probabilities()
    assert (loaded(saved(tmp_path, maps, dtype="uint8")).as_tensor() - maps).abs().max() > 1e-3
    maps[:, 0, 0, 0] = torch.tensor([1 + 1e-5, -1e-5, 0.0])
    assert loaded(saved(tmp_path, maps, dtype="uint16"))[:, 0, 0, 0].tolist() == [1, 0, 0]


@each_dtype
def test_label_maps_and_single_channels_are_3d(dtype: str, tmp_path: Path) -> None:
    label = torch.randint(0, 3, (1, *SHAPE), dtype=torch.uint8)
    file = nibabel.load(saved(tmp_path, label, dtype=dtype, kinds="label"))
    assert file.shape == SHAPE
    assert file.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(file.dataobj), label[0])


def test_each_key_has_a_dtype_of_its_own(tmp_path: Path) -> None:
    item: Item = {"case": "a"}
    item |= {key: MetaTensor(torch.rand(2, *SHAPE), affine=AFFINE) for key in ("soft", "spread")}
    SaveMapsd(["soft", "spread"], file=lambda case, kind: tmp_path / f"{kind}.nii.gz", dtype=["uint8", "float32"])(item)
    kinds = [nibabel.load(tmp_path / f"{kind}.nii.gz").get_data_dtype() for kind in ("soft", "spread")]
    assert kinds == [np.uint8, np.float32]


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="soft_dtype: must be float32, uint16 or uint8, got float16"):
        SaveMapsd("soft", file=lambda case, kind: tmp_path / kind, dtype="float16")


def test_full_disk_keeps_the_old_file_and_leaves_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, probabilities())
    before = path.read_bytes()

    def full(image: Any, target: Path) -> None:
        target.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 0 * probabilities())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_case_without_soft_labels_is_passed_over() -> None:
    item: Item = {"image": MetaTensor(torch.zeros(1, *SHAPE), affine=AFFINE)}
    assert LoadSoftLabelsd("soft")(item).keys() == {"image"}


def problem(folder: Path, maps: torch.Tensor, *, affine: torch.Tensor = AFFINE) -> str | None:
    return problem_of_soft_labels(saved(folder, maps, affine=affine), classes=3, grid=GRID)


def test_other_grids_are_named(tmp_path: Path) -> None:
    shifted = AFFINE.clone()
    shifted[0, 3] += 0.2
    assert problem(tmp_path, probabilities(), affine=shifted) == (
        "soft labels are of another grid: affine differs by up to 0.2 mm"
    )
    with pytest.raises(InputError, match=r"case a: .*a_soft\.nii\.gz: .*affine differs by up to 0\.2 mm"):
        loaded(soft_label_file(tmp_path, "a"))
    shifted[0, 3] -= 0.195
    assert problem(tmp_path, probabilities(), affine=shifted) is None
    assert problem(tmp_path, probabilities(shape=(5, 4, 7))) == (
        "soft labels are of another grid: shape (5, 4, 7) instead of (5, 4, 6)"
    )
    with pytest.raises(InputError, match=r"case a: .*shape \(5, 4, 7\) instead of \(5, 4, 6\)"):
        loaded(soft_label_file(tmp_path, "a"))


def test_other_channels_are_named(tmp_path: Path) -> None:
    for classes in (2, 4):
        rule = f"soft labels must have 3 channels on their fourth axis, their shape is (5, 4, 6, {classes})"
        assert problem(tmp_path, probabilities(classes)) == rule
    assert problem(tmp_path, probabilities(1)) == "soft labels must be a 4D volume, its shape is (5, 4, 6)"


@pytest.mark.parametrize(
    ("voxel", "rule"),
    [
        ((0.5, 0.3, 0.1), "soft labels must sum to 1 in every voxel, found 0.9"),
        ((0.0, 0.0, 0.0), "soft labels must sum to 1 in every voxel, found 0"),
        ((1.5, -0.5, 0.0), "soft labels must lie between 0 and 1, found -0.5 to 1.5"),
        ((1.0, 2.0, 255.0), "soft labels must lie between 0 and 1, found 0 to 255"),
        ((np.nan, 0.0, 0.0), "soft labels must lie between 0 and 1, found nan to nan"),
    ],
)
def test_what_is_no_probability_is_named(voxel: Sequence[float], rule: str, tmp_path: Path) -> None:
    maps = torch.zeros(3, *SHAPE)
    maps[0] = 1
    maps[:, 2, 1, 3] = torch.tensor(voxel)
    assert problem(tmp_path, maps) == rule


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, probabilities())
    path.write_bytes(path.read_bytes()[:200])
    found = problem_of_soft_labels(path, classes=3, grid=GRID)
    assert found is not None
    assert found.startswith("soft labels cannot be read (")


@cache
def spatial(**overrides: Any) -> Compose:
    """The chain of train.yaml."""
    parser = ConfigParser()
    parser.read_config(str(REPO / "bundles/ensemble_kd_kits_ct/configs/train.yaml"))
    parser.update(overrides)
    found: Compose = parser.get_parsed_content("spatial")
    return found


SPACINGS = [(0.8, 0.8, 5.0), (1.5, 1.5, 2.5), (0.7, 1.9, 2.4999), (3.0, 1.0, 1.0)]


@pytest.mark.parametrize(("shape", "spacing"), product([(9, 14, 11), (16, 7, 5), (6, 33, 2)], SPACINGS))
def test_grid_is_that_of_the_resampled_volumes(shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    flipped = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    swapped = torch.eye(4, dtype=torch.float64)[[2, 0, 1, 3]]
    straight = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    single = rotated(spacing, (40, -25, 8)).float()  # as headers store it
    for affine in (straight, flipped @ straight, swapped @ straight, rotated(spacing), single.double()):
        volume = MetaTensor(torch.rand(1, *shape), affine=affine)
        item = spatial()({"image": volume, "label": MetaTensor(torch.ones(1, *shape), affine=affine)})
        found, where = grid_of(spatial(), shape=shape, affine=affine)
        assert found == tuple(item["image"].shape[1:]) == tuple(item["label"].shape[1:])
        assert torch.allclose(where, item["image"].affine, rtol=0, atol=1e-9)
        assert torch.allclose(where, item["label"].affine, rtol=0, atol=1e-9)


def test_grid_without_resampling_is_the_scans() -> None:
    found, where = grid_of(spatial(axcodes=None, pixdim=None), shape=SHAPE, affine=AFFINE)
    assert found == SHAPE
    assert torch.equal(where, AFFINE)


def scan(folder: Path, *, affine: torch.Tensor = AFFINE) -> dict[str, Any]:
    """A case of scan and label, 9 x 8 x 7 voxels."""
    rng, files = np.random.default_rng(0), {"image": folder / "image.nii.gz", "label": folder / "label.nii.gz"}
    for path, highest in zip(files.values(), (900, 3), strict=True):
        volume = rng.integers(0, highest, (9, 8, 7)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, affine.numpy()), path)
    return {"case": "a"} | {key: str(path) for key, path in files.items()}


def check(case: dict[str, Any], groups: Sequence[Sequence[int]] = ((0,), (1,), (2,))) -> None:
    check_scans([[case]], spatial=spatial(), label_groups=groups)


def test_soft_labels_are_checked_on_the_networks_grid(tmp_path: Path) -> None:
    affine = rotated((2.0, 1.0, 3.0))
    case = scan(tmp_path, affine=affine)
    shape, grid = grid_of(spatial(), shape=(9, 8, 7), affine=affine)
    case["soft"] = str(saved(tmp_path, probabilities(shape=shape), affine=grid, dtype="uint16"))
    check(case)
    with pytest.raises(InputError, match=r"case a: .*a_soft\.nii\.gz: soft labels must have 2 channels"):
        check(case, [[0], [1, 2]])
    saved(tmp_path, probabilities(shape=(9, 8, 7)), affine=affine)
    with pytest.raises(InputError, match=r"case a: .*a_soft\.nii\.gz: soft labels are of another grid: shape"):
        check(case)


def test_voxels_without_size_are_named(tmp_path: Path) -> None:
    case = scan(tmp_path)
    for key in ("image", "label"):
        file = nibabel.load(case[key])
        volume = nibabel.Nifti1Image(np.asarray(file.dataobj), None)
        volume.header["pixdim"][1:4] = (1, 0, 2)  # or MONAI takes them for the sizes
        volume.header.set_sform(np.diag([1.0, 0.0, 2.0, 1.0]), code=1)
        nibabel.save(volume, case[key])
    rule = r"case a: .*image\.nii\.gz: image has no voxel size, pixdim is \[1.0, 0.0, 2.0\]"
    with pytest.raises(InputError, match=rule):
        check(case)
