from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from tools.data.phantoms import write_volume
from tools.report.figure import (
    DPI,
    HEADING,
    PANEL_WIDTH,
    Case,
    best_plane,
    dice,
    label_box,
    load,
    overview,
    planes,
    thick_axis,
)

SPACING = (2.0, 2.0, 4.0)


def block(low: tuple[int, int, int], high: tuple[int, int, int], value: int = 1) -> NDArray[np.uint8]:
    volume = np.zeros((40, 36, 16), np.uint8)
    volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return volume


def make_case(
    folder: Path,
    prediction: NDArray[np.uint8],
    reference: NDArray[np.uint8] | None = None,
    *,
    spacing: tuple[float, float, float] = SPACING,
) -> Case:
    """A case on disk: a ramp along x as scan, a box as reference."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 36, 16))
    reference = block((10, 10, 4), (20, 20, 8)) if reference is None else reference
    volumes = {"image.nii.gz": ramp, "reference.nrrd": reference, "prediction.nii.gz": prediction}
    for name, volume in volumes.items():
        write_volume(folder / name, volume, spacing=spacing)
    image, true, found = (folder / name for name in volumes)
    return Case(folder.name, image, true, {"prediction": found})


def test_figure_has_the_expected_size_and_columns(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8)))
    single = imread(overview([case], tmp_path / "out/one.png", title="one"))
    double = imread(overview([case, case], tmp_path / "out/two.png", title="two"))
    assert single.shape[1] == double.shape[1] == 3 * PANEL_WIDTH * DPI
    assert double.shape[0] - HEADING * DPI == pytest.approx(2 * (single.shape[0] - HEADING * DPI), abs=2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one.png", "two.png"]


def test_only_the_prediction_column_and_its_dice_follow_the_prediction(tmp_path: Path) -> None:
    """Both predictions lie inside the reference, so that the field shown is the same."""
    figures = [
        imread(overview([make_case(tmp_path / "case", block((10, 10, 4), high))], tmp_path / f"{high[0]}.png"))
        for high in ((20, 20, 8), (15, 20, 8))
    ]
    changed = (figures[0] != figures[1]).any(-1)
    heading = round(2 * HEADING * DPI)
    third = changed.shape[1] // 3
    assert changed[heading:, 2 * third + 20 :].any()
    assert not changed[heading:, : 2 * third].any()
    assert changed[:heading, 2 * third :].any()


def test_every_label_has_its_colour(tmp_path: Path) -> None:
    reference = block((10, 10, 4), (20, 20, 8)) + block((22, 10, 4), (30, 20, 8), 2)
    without = reference * (reference == 1)
    figures = [
        imread(overview([make_case(tmp_path / "case", p, reference)], tmp_path / "p.png")) for p in (reference, without)
    ]
    panels = [p[round(2 * HEADING * DPI) :, p.shape[1] * 2 // 3 :] for p in figures]
    amber = [np.count_nonzero(p[..., 0] - p[..., 2] > 0.4) for p in panels]
    assert amber[0] > 100
    assert amber[1] == 0


def test_dice_per_label(tmp_path: Path) -> None:
    """Label 1: 400 and 200 voxels, 200 shared, 2/3. Label 2: missing in the prediction, 0. Label 3: no reference."""
    reference = block((10, 10, 4), (20, 20, 8)) + block((30, 30, 4), (32, 32, 8), 2)
    prediction = block((10, 10, 4), (15, 20, 8)) + block((0, 0, 0), (2, 2, 2), 3)
    volumes = load(make_case(tmp_path / "case", prediction, reference))
    scores = dice(*volumes.masks)
    assert scores == pytest.approx({1: 2 / 3, 2: 0, 3: np.nan}, nan_ok=True)


def test_volumes_are_turned_to_left_back_head(tmp_path: Path) -> None:
    """Scan and prediction stored from right to left and back to front show the same, and 255 counts as 1."""
    case = make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8), 255))
    volumes = load(case)
    assert volumes.spacing == SPACING
    assert volumes.image[:, 0, 0].tolist() == list(range(40))
    assert np.unique(volumes.predictions["prediction"]).tolist() == [0, 1]

    for name in (case.image, case.predictions["prediction"]):
        turned = nib.as_closest_canonical(nib.load(name))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), name)
    again = load(case)
    for before, after in zip([volumes.image, *volumes.masks], [again.image, *again.masks], strict=True):
        np.testing.assert_array_equal(before, after)


def test_shown_part_and_planes(tmp_path: Path) -> None:
    """Labels reach 10..24, 10..19, 4..7; 25 mm are 12 voxels of 2 mm and 6 of 4 mm, cut at the border."""
    reference = block((10, 10, 4), (20, 20, 8)) | block((10, 10, 6), (25, 20, 7))
    volumes = load(make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8)), reference))
    assert label_box(volumes) == (slice(0, 37), slice(0, 32), slice(0, 14))
    assert best_plane(volumes, 2) == 6
    empty = np.zeros_like(reference)
    nothing = load(make_case(tmp_path / "empty", empty, empty))
    assert label_box(nothing) == (slice(0, 40), slice(0, 36), slice(0, 16))
    assert [best_plane(nothing, axis) for axis in range(3)] == [20, 18, 8]
    assert dice(*nothing.masks) == {}


def test_volumes_must_share_a_grid(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8)))
    prediction = Path(case.predictions["prediction"])
    write_volume(prediction, np.zeros((40, 36, 15), np.uint8), spacing=SPACING)
    with pytest.raises(ValueError, match=r"case: .*differ in shape.*\(40, 36, 15\)"):
        load(case)
    write_volume(prediction, np.zeros((40, 36, 16), np.uint8), spacing=(1, 1, 1))
    with pytest.raises(ValueError, match=r"case: .*affine"):
        load(case)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1.5, 1.5, 10), 2),
        ((1.8, 1.8, 5), 2),
        ((8, 3.5, 3.5), 0),
        ((0.6, 0.6, 1.25), None),
        ((2, 2, 4), None),
        ((6, 6, 6), None),
    ],
)
def test_stacks_have_thick_slices(spacing: tuple[float, float, float], axis: int | None) -> None:
    assert thick_axis(spacing) == axis


def test_slices_of_a_stack_are_spread_over_its_labels(tmp_path: Path) -> None:
    """Labels in slices 2 to 13, twelve of them: the third, seventh and eleventh are shown, numbered from 1."""
    reference = block((10, 10, 2), (20, 20, 14))
    volumes = load(make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8)), reference, spacing=(2, 2, 8)))
    assert [(plane.name, plane.axis) for plane in planes(volumes)] == [(f"slice {n} of 16", 2) for n in (5, 9, 13)]
    empty = np.zeros_like(reference)
    few = load(make_case(tmp_path / "few", block((10, 10, 4), (20, 20, 6)), empty, spacing=(2, 2, 8)))
    assert [plane.place for plane in planes(few)] == [4, 5]


def test_oblique_stack_stays_as_stored(tmp_path: Path) -> None:
    """Its slices are tilted so far that a turn to left, back, head would exchange axes."""
    case = make_case(tmp_path / "case", block((10, 10, 4), (20, 20, 8)), spacing=(2, 2, 8))
    before = load(case)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    for name in (case.image, case.reference, case.predictions["prediction"]):
        stored = nib.load(name) if str(name).endswith(".nii.gz") else None
        volume = np.asarray(stored.dataobj) if stored else block((10, 10, 4), (20, 20, 8))
        nib.save(nib.Nifti1Image(volume, turn @ np.diag([2, 2, 8, 1])), str(name).replace(".nrrd", ".nii.gz"))
    after = load(case._replace(reference=str(case.reference).replace(".nrrd", ".nii.gz")))
    assert after.spacing == before.spacing
    for one, other in zip([before.image, *before.masks], [after.image, *after.masks], strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_prediction_has_its_column_and_scores(tmp_path: Path) -> None:
    """A change of the second prediction changes the fourth column and what stands above it, and nothing else."""
    full, part = block((10, 10, 4), (20, 20, 8)), block((10, 10, 4), (15, 20, 8))
    figures = []
    for second in (full, part):
        case = make_case(tmp_path / "case", second, spacing=(2, 2, 8))
        write_volume(tmp_path / "case/first.nii.gz", part, spacing=(2, 2, 8))
        both = case._replace(predictions={"first": tmp_path / "case/first.nii.gz", **case.predictions})
        figures.append(imread(overview([both], tmp_path / "p.png")))
    assert figures[0].shape[1] == 4 * PANEL_WIDTH * DPI
    changed = (figures[0] != figures[1]).any(-1)
    quarter, heading = changed.shape[1] // 4, round(2 * HEADING * DPI)
    assert changed[heading:, 3 * quarter + 20 :].any()
    assert changed[:heading, 3 * quarter :].any()
    assert not changed[:, : 3 * quarter].any()


def test_every_map_has_its_column(tmp_path: Path) -> None:
    """It is black at 0 and bright where it is highest, and no Dice stands above it."""
    full = block((10, 10, 4), (20, 20, 8))
    case = make_case(tmp_path / "case", full, spacing=(2, 2, 8))
    figures = []
    for part in (full, block((10, 10, 4), (15, 20, 8))):
        write_volume(tmp_path / "case/spread.nii.gz", 0.3 * part.astype(np.float32), spacing=(2, 2, 8))
        maps = {"spread": tmp_path / "case/spread.nii.gz"}
        figures.append(imread(overview([case._replace(maps=maps)], tmp_path / "p.png")))
    assert figures[0].shape[1] == 4 * PANEL_WIDTH * DPI
    quarter, heading = figures[0].shape[1] // 4, round(2 * HEADING * DPI)
    shown = figures[0][heading:, 3 * quarter + 20 : -20, :3].sum(-1)
    assert (shown.min(), shown.max() > 2) == (pytest.approx(0, abs=0.1), True)
    changed = (figures[0] != figures[1]).any(-1)
    assert changed[heading:, 3 * quarter + 20 :].any()
    assert not changed[:heading].any()
    assert not changed[:, : 3 * quarter].any()


def test_no_case(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no case to draw"):
        overview([], tmp_path / "p.png")
