from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import mannwhitneyu

from tools.data.phantoms import Volume, phantoms
from tools.per_bundle.hadnet_brats_mri.phantoms import ENHANCING, NECROSIS, OEDEMA, SEQUENCES, SHAPE, SPACING, case

COARSE: dict[str, Any] = {"shape": (32, 38, 30), "spacing": (6, 6, 6)}
MILLILITRES = np.prod(SPACING) / 1000
Scan = tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8]]  # image of each sequence, and the labels


def draw(index: int, **grid: Any) -> Scan:
    files = case(np.random.default_rng([0, index]), **grid)
    *images, label = (content.voxels for content in files.values() if isinstance(content, Volume))
    return dict(zip(SEQUENCES, images, strict=True)), label


def area(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the share of pairs in which the positive one scores higher."""
    pairs = positive.sum() * (~positive).sum()
    return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / pairs)


@pytest.fixture(scope="module")
def patients() -> list[Scan]:
    """Ten cases of the default size."""
    return [draw(index) for index in range(10)]


@pytest.fixture(scope="module")
def enhancing(patients: list[Scan]) -> list[Scan]:
    """Those of them whose tumour enhances."""
    return [patient for patient in patients if (patient[1] == ENHANCING).any()]


@pytest.fixture(scope="module")
def coarse() -> list[NDArray[np.uint8]]:
    """Labels of forty cases on the grid of the quick tests."""
    return [draw(index, **COARSE)[1] for index in range(40)]


def test_brats_layout_and_geometry(tmp_path: Path) -> None:
    """The files have the challenge's names; MONAI reads back the array and, in RAS, an affine that negates x and y."""
    grid: dict[str, Any] = {"shape": (40, 48, 24), "spacing": (5, 4, 6)}
    root = phantoms("hadnet_brats_mri", str(tmp_path), cases=2, **grid)
    for number in (1, 2):
        stem = f"BraTS19_PHANTOM_{number:03d}"
        names = sorted(path.name for path in (root / stem).iterdir())
        assert names == [f"{stem}_{ending}.nii.gz" for ending in ("flair", "seg", "t1", "t1ce", "t2")]
        images, label = draw(number - 1, **grid)
        for ending, expected in {**images, "seg": label}.items():
            volume = LoadImage(image_only=True, dtype=None)(root / stem / f"{stem}_{ending}.nii.gz")
            assert volume.numpy().dtype == (np.uint8 if ending == "seg" else np.int16)
            np.testing.assert_array_equal(volume.numpy(), expected)
            np.testing.assert_allclose(np.diag(volume.affine), [-5, -4, 6, 1])
            np.testing.assert_allclose(volume.affine[:3, 3], [97.5, 94, -69])


def test_all_sequences_show_the_same_brain_without_skull(patients: list[Scan]) -> None:
    """Background is 0 and brain positive; the brain has the size of an adult's and does not touch the border."""
    for images, label in patients:
        brain = images["t1"] > 0
        for image in images.values():
            assert image.shape == label.shape == SHAPE
            np.testing.assert_array_equal(image > 0, brain)
            assert image.min() == 0
        assert not label[~brain].any()
        assert 1000 < brain.sum() * MILLILITRES < 1900
        assert brain.sum() == brain[1:-1, 1:-1, 1:-1].sum()


def test_tumours_have_realistic_structures(patients: list[Scan]) -> None:
    """The rind is at most 11 mm thick, about a third of the core, and covers about half of it; volumes are in ml."""
    shares = []
    for _, label in patients:
        assert set(np.unique(label)) <= {0, NECROSIS, OEDEMA, ENHANCING}
        necrosis, oedema, rind = ((label == value).sum() * MILLILITRES for value in (NECROSIS, OEDEMA, ENHANCING))
        assert 30 < necrosis + oedema + rind < 150
        assert 5 < necrosis < 75
        assert oedema > 10
        if rind:
            shares.append(rind / (necrosis + rind))
            core = np.isin(label, (NECROSIS, ENHANCING))
            depth = distance_transform_edt(core, sampling=SPACING)
            assert depth[label == ENHANCING].max() < 11 + SPACING[0]
            shell = label[core & (depth <= SPACING[0])] == ENHANCING
            assert 0.2 < shell.mean() < 0.75
    assert min(shares) > 0.2
    assert max(shares) < 0.45
    assert 0.28 < np.mean(shares) < 0.38


def test_one_tumour_in_eight_does_not_enhance(coarse: list[NDArray[np.uint8]]) -> None:
    """All structures survive on a coarse grid."""
    for label in coarse:
        assert (label == NECROSIS).sum() > 20
        assert (label == OEDEMA).sum() > 20
        assert not 0 < (label == ENHANCING).sum() < 10
    assert 2 <= sum(not (label == ENHANCING).any() for label in coarse) <= 9


def test_tissues_look_as_in_their_sequences(patients: list[Scan]) -> None:
    for images, label in patients:
        normal = (images["t1"] > 0) & (label == 0)
        for name, image in images.items():
            oedema = image[label == OEDEMA].mean() / np.median(image[normal])
            assert oedema > 1.2 if name in ("flair", "t2") else oedema < 0.95
        assert images["t1"][label == NECROSIS].mean() < images["t1"][label == OEDEMA].mean()
        assert images["t2"][label == NECROSIS].mean() > images["t2"][label == OEDEMA].mean()
        fluid = normal & (images["t2"] > np.percentile(images["t2"][normal], 97))
        for name in ("flair", "t1"):
            assert images[name][fluid].mean() < 0.8 * images[name][normal].mean()


def test_only_contrast_agent_shows_what_enhances(enhancing: list[Scan]) -> None:
    """Inside the core T1ce tells the enhancing part from the rest, other sequences hardly do; depth in the core helps.

    Figures are areas under the ROC curve by voxel, averaged over the cases.
    """
    areas: dict[str, list[float]] = {name: [] for name in (*SEQUENCES, "depth")}
    for images, label in enhancing:
        core = np.isin(label, (NECROSIS, ENHANCING))
        for name, image in {**images, "depth": distance_transform_edt(core)}.items():
            areas[name].append(area(image[core], label[core] == ENHANCING))
    mean = {name: max(np.mean(values), 1 - np.mean(values)) for name, values in areas.items()}
    best = max(mean[name] for name in ("flair", "t1", "t2"))
    assert mean["t1ce"] > 0.95
    assert 0.55 < best < 0.75
    assert mean["depth"] > best


def test_normal_structures_enhance_too(enhancing: list[Scan]) -> None:
    """Outside the tumour T1ce rises over T1 as much as in an enhancing rind, in few voxels."""
    for images, label in enhancing:
        brain = images["t1"] > 0
        rise = np.divide(images["t1ce"], images["t1"], where=brain, out=np.zeros(brain.shape))
        vessels = (rise > np.median(rise[label == ENHANCING])) & (label == 0)
        assert 20 < vessels.sum() < 0.05 * brain.sum()


@pytest.mark.parametrize("index", [1, 4])
def test_one_patient_at_two_resolutions(index: int, patients: list[Scan]) -> None:
    """Eight voxels of the fine grid fill one of the default grid."""
    label = patients[index][1]
    fine = draw(index, shape=tuple(2 * n for n in SHAPE), spacing=tuple(s / 2 for s in SPACING))[1]
    x, y, z = SHAPE
    for values in ((NECROSIS, OEDEMA, ENHANCING), (NECROSIS, ENHANCING), (ENHANCING,)):
        one = np.isin(label, values)
        share = np.isin(fine, values).reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))
        assert one.sum() == pytest.approx(share.sum(), rel=0.05)
        assert 2 * share[one].sum() / (one.sum() + share.sum()) > (0.75 if values == (ENHANCING,) else 0.9)


def test_cases_differ(patients: list[Scan]) -> None:
    centres = np.array([np.argwhere(label).mean(0) * SPACING for _, label in patients])
    assert (centres.std(0) > (12, 12, 6)).all()
    for name in SEQUENCES:
        means = [images[name][label == 0].mean() for images, label in patients]
        assert np.std(means) > 0.15 * np.mean(means)
