"""Scores and their tables of ensemble_kd_kits_ct: by hand, against MONAI and the reference implementation."""

from __future__ import annotations

import csv
from math import inf, isnan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric, compute_hausdorff_distance
from scipy import ndimage

from ensemble_kd.metrics import CaseScores, published_scores, scores
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
SPACING = (0.8, 0.8, 2.5)
ORGAN = {"organ": [1]}


def golden_masks() -> list[torch.Tensor]:
    return [torch.from_numpy(GOLDEN[f"metric.{name}"]).to(torch.uint8) for name in ("pred", "ref")]


def volume(
    *boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (12, 10, 8), value: int = 1
) -> torch.Tensor:
    """Label map with one value in boxes."""
    found = torch.zeros(shape, dtype=torch.uint8)
    for box in boxes:
        found[box] = value
    return found


def only(found: dict[str, float]) -> list[float]:
    """Dice, ASSD, HD and HD95 of the one structure."""
    assert list(found) == ["dice_organ", "assd_organ", "hd_organ", "hd95_organ"]
    return list(found.values())


def test_scores_of_the_reference() -> None:
    expected = [float(GOLDEN[f"metric.{name}"]) for name in ("dice", "assd", "hd", "hd95")]
    assert GOLDEN["metric.spacing"].tolist() == list(SPACING)
    found = published_scores(*golden_masks(), spacing=SPACING, structures=ORGAN)
    assert only(found) == pytest.approx(expected, rel=0, abs=1e-6)


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_neighbours_of_a_surface(connectivity: int) -> None:
    found = published_scores(*golden_masks(), spacing=SPACING, structures=ORGAN, connectivity=connectivity)
    expected = [float(GOLDEN[f"metric.{name}_conn{connectivity}"]) for name in ("assd", "hd95")]
    assert [found["assd_organ"], found["hd95_organ"]] == pytest.approx(expected, rel=0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_monai(seed: int) -> None:
    """Blobs that touch the rim of the volume; the published HD is MONAI's, whatever the neighbours."""
    noise = np.random.default_rng(seed).standard_normal((2, 18, 16, 12))
    masks = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 1)) > 0.03)
    pair = [mask[None, None] for mask in masks]
    arguments: dict[str, Any] = {"include_background": True, "spacing": list(SPACING)}
    found = scores(*masks.byte(), spacing=SPACING, structures=ORGAN)
    expected = {
        "dice_organ": DiceMetric(ignore_empty=False)(*pair),
        "hd95_organ": HausdorffDistanceMetric(percentile=95, include_background=True)(*pair, spacing=list(SPACING)),
        "asd_organ": SurfaceDistanceMetric(symmetric=True, include_background=True)(*pair, spacing=list(SPACING)),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)
    published = published_scores(*masks.byte(), spacing=SPACING, structures=ORGAN)
    assert published["dice_organ"] == pytest.approx(found["dice_organ"], abs=1e-6)
    assert published["hd_organ"] == pytest.approx(float(compute_hausdorff_distance(*pair, **arguments)), abs=1e-5)


def test_scores_by_hand() -> None:
    """One voxel against two that begin there, along an axis of 3 mm: distances 0, 0 and 3."""
    first, second = volume(np.s_[2:3, 3:4, 4:5]), volume(np.s_[2:3, 3:4, 4:6])
    found = only(published_scores(first, second, spacing=(1, 2, 3), structures=ORGAN))
    assert found == pytest.approx([2 / 3, 1, 3, 0.95 * 3], abs=1e-12)
    assert only(published_scores(second, first, spacing=(1, 2, 3), structures=ORGAN)) == pytest.approx(found, abs=1e-12)


def test_distances_are_in_mm() -> None:
    """Two voxels apart along every axis."""
    masks = [volume(np.s_[x : x + 1, y : y + 1, z : z + 1]) for x, y, z in ((1, 2, 3), (3, 4, 5))]
    distance = 2 * sqrt(0.5**2 + 0.7**2 + 3**2)
    found = only(published_scores(*masks, spacing=(0.5, 0.7, 3), structures=ORGAN))
    assert found == pytest.approx([0, distance, distance, distance], abs=1e-9)


def test_rim_of_the_volume_is_surface() -> None:
    """A full volume against its inner 27 voxels, 26 of them surface at 1 from the rim's nearest voxel."""
    full, inner = volume(shape=(5, 5, 5)) + 1, volume(np.s_[1:4, 1:4, 1:4], shape=(5, 5, 5))
    found = only(published_scores(full, inner, spacing=(1, 1, 1), structures=ORGAN))
    outside = [1.0] * 54 + [sqrt(2)] * 36 + [sqrt(3)] * 8
    expected = (sum(outside) + 26) / (98 + 26)
    assert found == pytest.approx([2 * 27 / 152, expected, sqrt(3), np.percentile(outside, 95)], abs=1e-9)


def test_diagonal_neighbours_are_looked_at() -> None:
    """A cube without one corner: the voxel inside that corner is surface, for 6 neighbours it is not."""
    cube = volume(np.s_[1:6, 1:6, 1:6], shape=(7, 7, 7))
    open_cube = cube.clone()
    open_cube[1, 1, 1] = 0
    found = [
        published_scores(cube, open_cube, spacing=(1, 1, 1), structures=ORGAN, connectivity=near) for near in (3, 1)
    ]
    corner, inside = 1.0, 1.0
    surface = 5**3 - 3**3
    assert found[0]["assd_organ"] == pytest.approx((corner + inside) / (surface + surface), abs=1e-12)
    assert found[1]["assd_organ"] == pytest.approx(corner / (surface + surface - 1), abs=1e-12)


def test_position_in_the_volume_does_not_matter() -> None:
    """What is computed on the masks' box is what the whole volume gives."""
    masks = [volume(np.s_[2:6, 3:7, 2:5]), volume(np.s_[4:9, 3:6, 3:7])]
    large = [torch.nn.functional.pad(mask, (9, 4, 0, 7, 3, 5)) for mask in masks]
    found = only(published_scores(*masks, spacing=SPACING, structures=ORGAN))
    assert only(published_scores(*large, spacing=SPACING, structures=ORGAN)) == pytest.approx(found, abs=1e-12)


def test_equal_masks() -> None:
    mask = volume(np.s_[2:6, 3:7, 2:5])
    assert only(published_scores(mask, mask.float(), spacing=SPACING, structures=ORGAN)) == [1, 0, 0, 0]


def test_empty_structures_stay_in_their_columns() -> None:
    """The first is in neither map, the second in one, the third in both, the last is the union of the others."""
    structures = {"none": [3], "one": [2], "both": [1], "union": [1, 2, 3]}
    label = volume(np.s_[2:6, 3:7, 2:5])
    prediction = label.clone()
    prediction[2] *= 2
    found = published_scores(prediction, label, spacing=SPACING, structures=structures)
    assert list(found) == [f"{score}_{name}" for name in structures for score in ("dice", "assd", "hd", "hd95")]
    assert all(isnan(found[f"{score}_none"]) for score in ("dice", "assd", "hd", "hd95"))
    assert found["dice_one"] == 0
    assert all(isnan(found[f"{score}_one"]) for score in ("assd", "hd", "hd95"))
    assert found["dice_both"] == pytest.approx(2 * 36 / (36 + 48))
    assert found["hd_both"] == pytest.approx(0.8)
    assert [found[f"{score}_union"] for score in ("dice", "assd", "hd", "hd95")] == [1, 0, 0, 0]


def test_kits_structures() -> None:
    """Kidney, tumour, and the kidney with its tumour, which the challenge scores."""
    label, prediction = (volume(np.s_[1:9, 3:7, 2:5]) for _ in range(2))
    label[3:5][label[3:5] > 0] = 2
    prediction[4:6][prediction[4:6] > 0] = 2
    found = scores(prediction, label, spacing=SPACING)
    dice = {name: value for name, value in found.items() if name.startswith("dice")}
    assert dice == pytest.approx({"dice_kidney": 5 / 6, "dice_tumour": 1 / 2, "dice_kidney_and_tumour": 1})


def test_maps_of_different_shape() -> None:
    with pytest.raises(ValueError, match=r"prediction is \(12, 10, 8\), the label \(12, 10, 7\)"):
        scores(volume(), volume(shape=(12, 10, 7)), spacing=SPACING)


def test_empty_structures() -> None:
    """The first is in neither map, the second in the label alone, the third in the prediction alone."""
    label, prediction = volume(np.s_[2:6, 3:7, 2:5]), volume(np.s_[2:6, 3:7, 2:5], value=2)
    found = scores(prediction, label, spacing=SPACING, structures={"none": [3], "missed": [1], "invented": [2]})
    assert [found[f"dice_{name}"] for name in ("none", "missed", "invented")] == [1, 0, 0]
    assert isnan(found["hd95_none"])
    assert isnan(found["asd_none"])
    assert {found[f"{kind}_{name}"] for kind in ("hd95", "asd") for name in ("missed", "invented")} == {inf}


def test_distances_by_hand() -> None:
    """One voxel against two that begin there, along an axis of 3 mm: distances 0, 0 and 3."""
    masks = volume(np.s_[2:3, 3:4, 4:5]), volume(np.s_[2:3, 3:4, 4:6])
    found = scores(*masks, spacing=(1, 2, 3), structures=ORGAN)
    assert found == pytest.approx({"dice_organ": 2 / 3, "hd95_organ": 0.95 * 3, "asd_organ": 1}, abs=1e-6)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path: Path) -> None:
    """Two runs of an evaluator, with spacing from the label's affine; the second leaves its own cases only."""
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    maps = [volume(np.s_[2:4, 3:4, 4:5])[None], volume(np.s_[2:3, 3:4, 4:5])[None], volume()[None]]
    label = MetaTensor(maps[0], affine=affine)
    evaluator = Engine(lambda _, batch: [{"pred": maps[case["index"]], "label": label} for case in batch])
    CaseScores(str(tmp_path / "run/metrics.csv"), structures={"organ": (1, 2)}, published=True).attach(evaluator)
    cases = [[{"case": "a", "index": 0}, {"case": "b", "index": 1}], [{"case": "c", "index": 2}]]
    evaluator.run(cases[:1])
    evaluator.run(cases)
    rows = read(tmp_path / "run/metrics.csv")
    assert list(rows[0]) == ["case", "dice", "dice_organ", "hd95_organ", "asd_organ", "error"]
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert [[float(row[name]) for row in rows] for name in ("dice", "dice_organ")] == [pytest.approx([1, 2 / 3, 0])] * 2
    assert [float(row["hd95_organ"]) for row in rows] == pytest.approx([0, 0.76, inf])
    summary = {row["score"]: row for row in read(tmp_path / "run/metrics_summary.csv")}
    assert [summary[name]["cases"] for name in ("dice_organ", "hd95_organ")] == ["3", "2"]
    assert [summary["hd95_organ"][name] for name in ("infinite", "present")] == ["1", "2"]
    published = read(tmp_path / "run/metrics_published.csv")
    assert [row["hd_organ"] for row in published] == ["0.0", "0.800000011920929", ""]
    assert evaluator.state.metrics["dice_organ"] == pytest.approx(5 / 9)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metrics.csv",
        "metrics_published.csv",
        "metrics_summary.csv",
    ]


@pytest.mark.parametrize("structures", [{}, {"organ": []}])
def test_bad_structures(structures: dict[str, list[int]]) -> None:
    with pytest.raises(InputError, match="structures: must be names with label values, got"):
        CaseScores("metrics.csv", structures=structures)
