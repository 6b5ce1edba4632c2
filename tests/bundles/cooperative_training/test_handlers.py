"""Scores, their summary and the tables of runs of the cooperative-training bundle."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from cooperative_training.handlers import CaseScores, hd95, scores
from cooperative_training.shared.tables import CaseReport
from cooperative_training.shared.validation import InputError

SPACING = (1.5, 1.0, 8.0)
RV, MYO, LV = 1, 2, 3


def block(low: Sequence[int], high: Sequence[int], value: int = 1) -> torch.Tensor:
    volume = torch.zeros(24, 24, 8, dtype=torch.uint8)
    volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return volume


@pytest.mark.parametrize(
    ("shift", "dice", "distance"),
    [((0, 0, 0), 1.0, 0.0), ((2, 0, 0), 0.8, 3.0), ((0, 3, 0), 0.7, 3.0), ((0, 0, 1), 0.75, 8.0)],
)
def test_shifted_box(shift: tuple[int, int, int], dice: float, distance: float) -> None:
    """A box of 10 x 10 x 4 voxels; the face that is furthest out has more than a twentieth of the surface."""
    low, high = (5, 5, 1), (15, 15, 5)
    moved = block(*(np.add(corner, shift).tolist() for corner in (low, high)))
    found = scores(moved, block(low, high), spacing=SPACING, structures=["RV"])
    assert found == pytest.approx({"dice_RV": dice, "hd95_RV": distance, "dice": dice})


@pytest.mark.parametrize("seed", range(3))
def test_hd95_by_brute_force(seed: int) -> None:
    masks = np.random.default_rng(seed).random((2, 9, 8, 5)) < 0.4
    one, other = (np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in masks)
    table = cdist(one, other)
    expected = max(np.percentile(table.min(axis), 95) for axis in (0, 1))
    assert hd95(*torch.from_numpy(masks), spacing=SPACING) == pytest.approx(expected)


def test_one_slice_is_compared_in_its_plane() -> None:
    """A square of 30 pixels moved by one: in 3D every pixel were border, and 29 of 30 would touch."""
    square = torch.zeros(40, 40, 1, dtype=torch.bool)
    square[4:34, 4:34] = True
    assert hd95(square.roll(1, 0), square, spacing=(1.25, 1.25, 8)) == pytest.approx(1.25)


def test_empty_masks() -> None:
    """RV in neither: 1 and no distance. MYO and LV in one of both: 0 and infinitely far. The mean counts all three."""
    myo, lv = block((2, 2, 2), (8, 8, 6), MYO), block((2, 2, 2), (8, 8, 6), LV)
    found = scores(myo, lv, spacing=SPACING)
    dice = {name: found[f"dice_{name}"] for name in ("RV", "MYO", "LV")}
    distance = {name: found[f"hd95_{name}"] for name in ("RV", "MYO", "LV")}
    assert dice == {"RV": 1, "MYO": 0, "LV": 0}
    assert distance == pytest.approx({"RV": math.nan, "MYO": math.inf, "LV": math.inf}, nan_ok=True)
    assert found["dice"] == pytest.approx(1 / 3)


def test_only_the_chosen_structures_count() -> None:
    label = block((2, 2, 2), (8, 8, 6), LV)
    prediction = label + block((12, 12, 2), (18, 18, 6), RV)
    assert scores(prediction, label, spacing=SPACING, structures=["LV"]) == {"dice_LV": 1, "hd95_LV": 0, "dice": 1}
    assert scores(prediction, label, spacing=SPACING)["dice"] == pytest.approx(2 / 3)


def row(test_set: str, dice: float, distance: float) -> dict[str, Any]:
    names = {"case": "c", "patient": "p", "frame": "ED", "set": test_set}
    return names | {"dice_LV": dice, "hd95_LV": distance}


def test_summary_by_set_and_over_sets() -> None:
    """Sets keep their order and count once each, however many cases they have; infinite distances are left out.

    The reference of the last clean case holds no LV: its scores are in `mean` and not in `mean_present`.
    """
    rows = [row("spike", 0.5, 4.0), row("clean", 0.9, 2.0), row("clean", 0.8, math.inf), row("clean", 0.4, 8.0)]
    handler = CaseScores("metrics.csv")
    handler.rows, handler.held = rows, [{"LV": True}] * 3 + [{"LV": False}]
    table = {(line.pop("set"), line.pop("score")): line for line in handler.summary()}
    assert list(table) == [(s, n) for s in ("spike", "clean", "over sets") for n in ("dice_LV", "hd95_LV")]
    statistics = ("cases", "mean", "sd", "median", "worst", "best", "infinite", "present", "mean_present")
    expected = {
        ("clean", "dice_LV"): (3, 0.7, math.sqrt(0.14 / 3), 0.8, 0.4, 0.9, 0, 2, 0.85),
        ("clean", "hd95_LV"): (2, 5.0, 3.0, 5.0, 8.0, 2.0, 1, 1, 2.0),
        ("spike", "dice_LV"): (1, 0.5, 0.0, 0.5, 0.5, 0.5, 0, 1, 0.5),
        ("over sets", "dice_LV"): (2, 0.6, 0.1, 0.6, 0.5, 0.7, 0, 2, 0.675),
        ("over sets", "hd95_LV"): (2, 4.5, 0.5, 4.5, 5.0, 4.0, 0, 2, 3.0),
    }
    for key, values in expected.items():
        assert table[key] == pytest.approx(dict(zip(statistics, values, strict=True)) | {"failed": 0}), key


def volume(label_map: torch.Tensor, name: str = "") -> MetaTensor:
    return MetaTensor(label_map[None], affine=np.diag([*SPACING, 1]), meta={"filename_or_obj": name})


def evaluate(handler: CaseScores | CaseReport, cases: Sequence[tuple[dict[str, str], dict[str, MetaTensor]]]) -> Engine:
    """Runs an evaluation that reads a case and finds its output, one case at a time."""
    outputs = iter([output for _, output in cases])
    engine = Engine(lambda _engine, _batch: [next(outputs)])
    handler.attach(engine)
    engine.run([[case] for case, _ in cases])
    return engine


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scored(test_set: str, dice: float) -> tuple[dict[str, str], dict[str, MetaTensor]]:
    """A case whose LV of 10 x 10 x 4 voxels is found moved along y, so that the Dice is as given."""
    shift = round(10 - 10 * dice)
    label, found = block((5, 5, 1), (15, 15, 5), LV), block((5, 5 + shift, 1), (15, 15 + shift, 5), LV)
    case = {"case": f"{test_set}/007_ES", "patient": "007", "frame": "ES", "set": test_set}
    return case, {"pred": volume(found), "label": volume(label)}


def test_table_of_an_evaluation(tmp_path: Path) -> None:
    handler = CaseScores(str(tmp_path / "new" / "metrics.csv"), structures=["LV"])
    for _ in range(2):  # the second run starts again
        engine = evaluate(handler, [scored("clean", 0.8), scored("spike", 0.5)])
    first, second = read(tmp_path / "new/metrics.csv")
    assert list(first) == ["case", "patient", "frame", "set", "dice_LV", "hd95_LV", "dice", "error"]
    assert [first[name] for name in list(first)[:4]] == ["clean/007_ES", "007", "ES", "clean"]
    assert [float(first[name]) for name in list(first)[4:-1]] == pytest.approx([0.8, 2.0, 0.8])
    assert [float(second[name]) for name in list(second)[4:-1]] == pytest.approx([0.5, 5.0, 0.5])
    summary = {(line["set"], line["score"]): float(line["mean"]) for line in read(tmp_path / "new/metrics_summary.csv")}
    assert summary["over sets", "hd95_LV"] == pytest.approx(3.5)
    assert engine.state.metrics["over sets/dice"] == pytest.approx(0.65)
    assert engine.state.metrics["clean/dice_LV"] == pytest.approx(0.8)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["metrics.csv", "metrics_summary.csv"]


def test_structures_that_a_reference_lacks(tmp_path: Path) -> None:
    """RV is in neither mask, MYO in the prediction alone: an empty field, and an infinite distance that is counted."""
    case, output = scored("clean", 0.8)
    output["pred"][0, :2, :2, :2] = MYO
    evaluate(CaseScores(str(tmp_path / "metrics.csv")), [(case, output)])
    (found,) = read(tmp_path / "metrics.csv")
    assert (found["dice_RV"], found["hd95_RV"], found["dice_MYO"], found["hd95_MYO"]) == ("1.0", "", "0.0", "inf")
    columns = ("cases", "mean", "infinite", "present", "mean_present")
    summary = {line["score"]: tuple(line[name] for name in columns) for line in read(tmp_path / "metrics_summary.csv")}
    assert summary["dice_RV"] == ("1", "1.0", "0", "0", "")
    assert summary["hd95_RV"] == ("0", "", "0", "0", "")
    assert summary["hd95_MYO"] == ("0", "", "1", "0", "")
    assert summary["dice_LV"][3] == "1"


def test_metrics_of_one_set_have_plain_names(tmp_path: Path) -> None:
    engine = evaluate(CaseScores(str(tmp_path / "metrics.csv")), [scored("clean", 0.8)])
    assert engine.state.metrics["dice_LV"] == pytest.approx(0.8)
    assert engine.state.metrics["dice"] == pytest.approx(2.8 / 3)


def test_a_table_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the new table is complete, the old one lies there."""
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    seen = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        seen.append((target.name, target.exists() and target.read_text(), len(read(self))))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    evaluate(CaseScores(str(path)), [scored("clean", 0.8)])
    assert seen == [("metrics.csv", "old", 1), ("metrics_summary.csv", False, 7)]


@pytest.mark.parametrize("structures", [[], ["LV", "LA"]])
def test_unknown_structures(structures: list[str]) -> None:
    with pytest.raises(InputError, match=r"structures: must be some of RV, MYO, LV, got \["):
        CaseScores("metrics.csv", structures=structures)


def test_report_of_an_inference(tmp_path: Path) -> None:
    """Voxels of 12 cubic mm: 400 and 50 of them are 4.8 and 0.6 ml."""
    found = block((5, 5, 1), (15, 15, 5), LV) + block((0, 0, 0), (5, 5, 2), RV)
    handler = CaseReport(str(tmp_path / "report.csv"), structures={"RV": [RV], "MYO": [MYO], "LV": [LV]})
    evaluate(handler, [({"case": "007_ES"}, {"pred": volume(found, "a/scan.nii.gz")})])
    (line,) = read(tmp_path / "report.csv")
    volumes = {"RV_ml": "0.6", "MYO_ml": "0.0", "LV_ml": "4.8"}
    assert line == {"case": "007_ES", **volumes, "image": "a/scan.nii.gz", "error": ""}
