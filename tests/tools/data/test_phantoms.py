import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.ndimage import label as components

from tools import REPO
from tools.data.phantoms import Volume, phantoms, write_volume

RECIPES = sorted(p.parent.name for p in (REPO / "tools/per_bundle").glob("*/phantoms.py"))
ATRIAL, CARDIAC = "vnet_atrial_mri", "cooperative_training_acdc_mri"
SPACING = (2.5, 2.5, 1.25)
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Heart = list[tuple[NDArray[np.int16], NDArray[np.uint8]]]  # image and labels at end-diastole and at end-systole


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def draw(seed: int, index: int, **grid: tuple[float, ...]) -> Pair:
    image, reference = _volumes(ATRIAL, seed, index, **grid)
    return image.voxels, reference.voxels


def draw_heart(index: int, **options: Any) -> tuple[Heart, NDArray[np.floating]]:
    """A patient's frames, and the size of a voxel in mm."""
    volumes = _volumes(CARDIAC, 0, index, **options)
    voxels = [volume.voxels for volume in volumes]
    return list(zip(voxels[::2], voxels[1::2], strict=True)), np.array(volumes[0].spacing)


def _volumes(bundle: str, *seeds: int, **options: Any) -> list[Volume]:
    recipe = importlib.import_module(f"tools.per_bundle.{bundle}.phantoms")
    files = recipe.case(np.random.default_rng(seeds), **options)
    return [content for content in files.values() if isinstance(content, Volume)]


@pytest.fixture(scope="module")
def patients() -> list[Pair]:
    """Ten cases of the default size."""
    return [draw(0, index) for index in range(10)]


@pytest.mark.parametrize("bundle", RECIPES)
def test_case_is_fixed_by_seed_and_index(bundle: str, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"shape": (40, 40, 24), "spacing": (5, 5, 2.5)}
    one = tree(phantoms(bundle, str(tmp_path / "a"), cases=1, seed=3, **grid))
    two = tree(phantoms(bundle, str(tmp_path / "b"), cases=2, seed=3, **grid))
    other = tree(phantoms(bundle, str(tmp_path / "c"), cases=1, seed=4, **grid))
    assert len(two) == 2 * len(one)
    assert one.items() < two.items()
    assert not set(one.values()) & set(other.values())


def test_challenge_layout_and_geometry(tmp_path: Path) -> None:
    """The files have the challenge's names; MONAI reads back the array and, in RAS, an affine that negates x and y."""
    root = phantoms(ATRIAL, str(tmp_path), cases=1, shape=(40, 48, 24), spacing=(4, 3, 2))
    names = sorted(tree(root))
    assert [n.partition("/")[2] for n in names] == ["laendo.nrrd", "lgemri.nrrd"]
    assert re.fullmatch(r"[A-Z0-9]{20}/laendo\.nrrd", names[0])
    header = (root / names[1]).read_bytes().split(b"\n\n")[0].decode()
    assert "type: unsigned char" in header
    assert "space: left-posterior-superior" in header
    assert "space directions: (4,0,0) (0,3,0) (0,0,2)" in header

    image, reference = draw(0, 0, shape=(40, 48, 24), spacing=(4, 3, 2))
    read = LoadImage(image_only=True, ensure_channel_first=True, simple_keys=True)
    for name, expected in ((names[0], reference), (names[1], image)):
        volume = read(root / name)
        np.testing.assert_array_equal(volume[0].numpy(), expected)
        np.testing.assert_allclose(np.diag(volume.affine), [-4, -3, 2, 1])
        np.testing.assert_allclose(volume.affine[:3, 3], [78, 70.5, -23])


def test_atrium_is_one_piece_of_realistic_size(patients: list[Pair]) -> None:
    """Bounds: the 100 public challenge labels have 19 to 132 ml (median 49 ml) and are 77 to 131 mm wide."""
    volumes = []
    for image, reference in patients:
        assert image.shape == reference.shape == (160, 160, 44)
        assert set(np.unique(reference)) == {0, 255}
        inside = reference > 0
        volumes.append(inside.sum() * np.prod(SPACING) / 1000)
        assert components(inside)[1] == 1
        width, depth, height = (np.ptp(i) * s for i, s in zip(np.nonzero(inside), SPACING, strict=True))
        assert 77 < width < 131
        assert 35 < depth < 80
        assert 25 < height < 55
    assert min(volumes) > 25
    assert max(volumes) < 100
    assert 40 < np.median(volumes) < 65


def test_brightness_alone_does_not_find_the_atrium(
    patients: list[Pair],
) -> None:
    """Blood is brighter than the rest, but other chambers and vessels are as bright."""
    for image, reference in patients:
        inside = reference > 0
        assert image[inside].mean() > 1.5 * image[~inside].mean()
        best = max(2 * (inside & (image > t)).sum() / (inside.sum() + (image > t).sum()) for t in range(10, 250, 5))
        assert best < 0.7


def test_one_patient_at_two_resolutions() -> None:
    fine = (draw(0, 1)[1] > 0).sum() * np.prod(SPACING)
    coarse = (draw(0, 1, shape=(100, 100, 22), spacing=(4, 4, 2.5))[1] > 0).sum() * 4 * 4 * 2.5
    assert coarse == pytest.approx(fine, rel=0.02)


def test_cases_differ(patients: list[Pair]) -> None:
    centres = np.array([np.argwhere(reference).mean(0) * SPACING for _, reference in patients])
    means = [image[reference > 0].mean() for image, reference in patients]
    assert (centres.std(0) > (4, 3, 0.7)).all()
    assert np.std(means) > 10


@pytest.fixture(scope="module")
def hearts() -> list[tuple[Heart, NDArray[np.floating]]]:
    """Ten cardiac cases of their own sizes."""
    return [draw_heart(index) for index in range(10)]


def test_acdc_layout_and_geometry(tmp_path: Path) -> None:
    """Files are named by the frames of Info.cfg; MONAI reads back the array and the spacing of this patient."""
    root = phantoms(CARDIAC, str(tmp_path), cases=2)
    for number in (1, 2):
        folder = root / f"patient{number:03d}"
        info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
        assert info.keys() == {"ED", "ES", "Group", "Height", "NbFrame", "Weight"}
        stems = [f"{folder.name}_frame{int(info[frame]):02d}" for frame in ("ED", "ES")]
        expected = [f"{stem}{ending}.nii.gz" for stem in stems for ending in ("", "_gt")]
        assert sorted(path.name for path in folder.iterdir()) == sorted(["Info.cfg", *expected])
        frames, spacing = draw_heart(number - 1)
        for name, array in zip(expected, [array for frame in frames for array in frame], strict=True):
            volume = LoadImage(image_only=True)(folder / name)
            np.testing.assert_array_equal(volume.numpy(), array)
            np.testing.assert_allclose(volume.pixdim, spacing, rtol=1e-6)
            np.testing.assert_allclose(np.diag(volume.affine), [*(spacing * (-1, -1, 1)), 1], rtol=1e-6)


def test_hearts_have_realistic_structures(hearts: list[tuple[Heart, NDArray[np.floating]]]) -> None:
    """Volumes stay within what 40 ACDC patients have; the left cavity lies in muscle, and the heart contracts."""
    for frames, spacing in hearts:
        millilitres = np.prod(spacing) / 1000
        (diastole, systole) = ([(label == value).sum() * millilitres for value in (1, 2, 3)] for _, label in frames)
        assert 60 < diastole[0] < 330
        assert 60 < diastole[1] < 250
        assert 70 < diastole[2] < 320
        assert systole[0] < 0.95 * diastole[0]
        assert systole[2] < 0.95 * diastole[2]
        assert systole[1] == pytest.approx(diastole[1], rel=0.25)
        for image, label in frames:
            assert image.shape == label.shape
            assert 6 <= label.shape[2] <= 12
            assert set(np.unique(label)) == {0, 1, 2, 3}
            assert components(label == 3)[1] == 1
            shifted = [np.roll(label, step, axis)[label == 3] for step in (1, -1) for axis in (0, 1)]
            neighbours = np.concatenate(shifted)
            assert np.mean(neighbours[neighbours != 3] == 2) > 0.99


def test_muscle_is_dark_and_blood_bright(hearts: list[tuple[Heart, NDArray[np.floating]]]) -> None:
    """The means of structures relative to the left cavity lie where those of ACDC do."""
    for frames, _ in hearts:
        for image, label in frames:
            right, muscle = (image[label == value].mean() / image[label == 3].mean() for value in (1, 2))
            assert 0.25 < muscle < 0.6
            assert 0.6 < right < 1.2


def test_hearts_lie_near_the_centre_and_some_end_slices_are_empty(
    hearts: list[tuple[Heart, NDArray[np.floating]]],
) -> None:
    offsets = []
    for frames, spacing in hearts:
        label = frames[0][1]
        offsets.append(((np.argwhere(label).mean(0) + 0.5) - np.array(label.shape) / 2)[:2] * spacing[:2])
    assert np.abs(offsets).max() < 70
    assert np.std(offsets, axis=0).min() > 4
    empty = [not label[..., z].any() for frames, _ in hearts for _, label in frames for z in (0, -1)]
    assert any(empty)
    assert not all(empty)


def test_domain_changes_the_image_of_the_same_patient() -> None:
    (source, _), (shifted, _) = (draw_heart(3, domain=domain) for domain in ("source", "shifted"))
    for (image, label), (other, same) in zip(source, shifted, strict=True):
        np.testing.assert_array_equal(label, same)
        clear, dull = (
            (volume[label == 3].mean() - volume[label == 2].mean()) / volume[label == 3].mean()
            for volume in (image, other)
        )
        assert dull < 0.8 * clear


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_volume_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"volume{suffix}"
    for value in (1, 2):
        write_volume(path, np.full((3, 4, 5), value, np.uint8), spacing=(1, 2, 3))
    assert LoadImage(image_only=True)(path).unique().tolist() == [2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundle": "no_such"}, "no phantoms for bundle 'no_such'.*vnet_atrial_mri"),
        ({"shape": (40, 40)}, "shape must be three positive numbers"),
        ({"spacing": (1, 0, 1)}, "spacing must be three positive numbers"),
        ({"cases": 0}, "cases must be at least 1, got 0"),
        ({"domain": "shifted"}, "no option --domain, there are: cases, seed, shape, spacing"),
        ({"bundle": CARDIAC, "scanner": 2}, "no option --scanner, there are: cases, domain, seed, shape, spacing"),
        ({"bundle": CARDIAC, "domain": "C"}, "domain must be one of source, shifted, got 'C'"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantoms(**{"bundle": ATRIAL, "output": str(tmp_path), **arguments})
