"""Scores of tumour regions and the tables of runs of the HAD-Net bundle."""

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

from hadnet.handlers import UncertainCaseScores
from hadnet.shared.regions import VALUES
from hadnet.shared.tables import CaseReport
from hadnet.shared.tumour_scores import CaseScores, scores

SPACING = (1.0, 1.5, 2.0)
NCR, ED, ET = VALUES[1:]
REGIONS = ("ET", "TC", "WT")
Case = tuple[str, dict[str, MetaTensor]]


def tumour(shift: Sequence[int] = (0, 0, 0)) -> torch.Tensor:
    """Boxes one within the other: oedema 14 x 14 x 14, core 10 x 10 x 10, in it 6 x 6 x 6 of enhancing tumour."""
    volume = torch.zeros(24, 24, 24, dtype=torch.uint8)
    for margin, value in ((4, ED), (6, NCR), (8, ET)):
        volume[tuple(slice(margin + step, 22 - margin + step) for step in shift)] = value
    return volume


@pytest.mark.parametrize(
    ("shift", "distance"), [((0, 0, 0), 0.0), ((2, 0, 0), 2.0), ((0, 2, 0), 3.0), ((0, 0, -2), 4.0)]
)
def test_shifted_tumour(shift: tuple[int, int, int], distance: float) -> None:
    """Two voxels of 6, 10 and 14 along one axis; the face furthest out has more than a twentieth of the surface."""
    found = scores(tumour(shift), tumour(), spacing=SPACING)
    moved = 2 if any(shift) else 0
    dice = [1 - moved / width for width in (6, 10, 14)]
    expected = dict(zip(("dice_ET", "dice_TC", "dice_WT", "dice"), (*dice, sum(dice) / 3), strict=True))
    assert list(found) == [*expected, "hd95_ET", "hd95_TC", "hd95_WT"]
    assert found == pytest.approx(expected | {f"hd95_{region}": distance for region in REGIONS})


@pytest.mark.parametrize("seed", range(3))
def test_distance_by_brute_force(seed: int) -> None:
    maps = np.random.default_rng(seed).choice(VALUES, (2, 9, 8, 7), p=[0.5, 0.1, 0.2, 0.2])
    found = scores(*torch.from_numpy(maps), spacing=SPACING)
    for region, values in (("ET", [4]), ("TC", [1, 4]), ("WT", [1, 2, 4])):
        masks = np.isin(maps, values)
        surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in masks]
        table = cdist(*surfaces)
        expected = max(np.percentile(table.min(axis), 95) for axis in (0, 1))
        assert found[f"hd95_{region}"] == pytest.approx(expected, rel=1e-5)
        assert found[f"dice_{region}"] == pytest.approx(2 * (masks[0] & masks[1]).sum() / masks.sum())


def test_absent_regions() -> None:
    """Enhancing tumour in neither map, a core in one of them, oedema in both."""
    label = torch.zeros(8, 8, 8)
    label[2:6, 2:6, 2:6] = ED
    prediction = label.clone()
    prediction[3:5, 3:5, 3:5] = NCR
    for maps in ((prediction, label), (label, prediction)):
        found = scores(*maps, spacing=SPACING)
        assert [found[f"dice_{region}"] for region in REGIONS] == [1, 0, 1]
        assert found["dice"] == pytest.approx(2 / 3)
        assert [found[f"hd95_{region}"] for region in REGIONS] == pytest.approx([math.nan, math.inf, 0], nan_ok=True)


def meta(volume: torch.Tensor) -> MetaTensor:
    return MetaTensor(volume[None], affine=np.diag([*SPACING, 1]), meta={"filename_or_obj": "a/scan_flair.nii.gz"})


def scored(name: str, shift: int, **more: torch.Tensor) -> Case:
    """A case that is found moved along the second axis."""
    volumes = {"pred": tumour((0, shift, 0)), "label": tumour(), **more}
    return name, {key: meta(volume) for key, volume in volumes.items()}


def evaluate(handler: CaseScores | CaseReport, cases: Sequence[Case], *, size: int = 1) -> Engine:
    """Runs an evaluation of decollated batches; what MONAI made before inference, as `brain`, is in the batch."""
    batches = [cases[start : start + size] for start in range(0, len(cases), size)]

    def step(engine: Engine, batch: Sequence[Case]) -> list[dict[str, Any]]:
        before = [{key: output[key] for key in output if key == "brain"} for _, output in batch]
        engine.state.batch = [{"case": name, **more} for (name, _), more in zip(batch, before, strict=True)]
        return [{key: output[key] for key in output if key != "brain"} for _, output in batch]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(batches)
    return engine


def read(path: Path, key: str = "case") -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {line.pop(key): line for line in csv.DictReader(file)}


def numbers(line: dict[str, str]) -> list[float]:
    return [float(value) for value in line.values()]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tables_of_an_evaluation(tmp_path: Path, size: int) -> None:
    """Core of 10 voxels, moved by 0, 1 and 2 of 1.5 mm."""
    handler = UncertainCaseScores(str(tmp_path / "new" / "metrics.csv"))
    for _ in range(2):  # the second run starts again
        engine = evaluate(handler, [scored(f"case_{shift}", shift) for shift in range(3)], size=size)
    table = read(tmp_path / "new/metrics.csv")
    assert list(table) == ["case_0", "case_1", "case_2"]
    assert list(table["case_0"]) == ["dice_ET", "dice_TC", "dice_WT", "dice", "hd95_ET", "hd95_TC", "hd95_WT", "error"]
    assert [float(line["dice_TC"]) for line in table.values()] == pytest.approx([1, 0.9, 0.8])
    summary = read(tmp_path / "new/metrics_summary.csv", "score")
    assert list(summary) == list(table["case_0"])[:-1]
    counts = ["infinite", "present", "mean_present", "failed"]
    assert list(summary["dice"]) == ["cases", "mean", "sd", "median", "worst", "best", *counts]
    assert numbers(summary["dice_TC"]) == pytest.approx([3, 0.9, math.sqrt(0.02 / 3), 0.9, 0.8, 1, 0, 3, 0.9, 0])
    assert numbers(summary["hd95_WT"]) == pytest.approx([3, 1.5, math.sqrt(4.5 / 3), 1.5, 3, 0, 0, 3, 1.5, 0])
    assert engine.state.metrics == pytest.approx({name: float(line["mean"]) for name, line in summary.items()})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["metrics.csv", "metrics_summary.csv"]


def test_summary_tells_where_a_region_is(tmp_path: Path) -> None:
    """Enhancing tumour, moved by one of its six voxels, in both maps, in the mask, in the label, in neither."""
    without = torch.where(tumour() == ET, NCR, tumour())
    absent = {"label": without, "pred": without}
    cases = [scored("both", 1), scored("mask", 1, label=without), scored("label", 0, pred=without)]
    cases.append(scored("none", 0, **absent))
    path = tmp_path / "metrics.csv"
    evaluate(UncertainCaseScores(str(path)), cases)
    assert [line["hd95_ET"] for line in read(path).values()] == ["1.5", "inf", "inf", ""]
    assert [float(line["dice_ET"]) for line in read(path).values()] == pytest.approx([5 / 6, 0, 0, 1])
    summary = read(tmp_path / "metrics_summary.csv", "score")
    assert numbers(summary["hd95_ET"]) == pytest.approx([1, 1.5, 0, 1.5, 1.5, 1.5, 2, 1, 1.5, 0])
    dice = [4, 11 / 24, np.std([5 / 6, 0, 0, 1]), 5 / 12, 0, 1, 0, 2, 5 / 12, 0]
    assert numbers(summary["dice_ET"]) == pytest.approx(dice)
    assert (summary["dice"]["present"], summary["dice_WT"]["present"]) == ("4", "4")
    engine = evaluate(UncertainCaseScores(str(path)), [cases[1], cases[3]])
    line = read(tmp_path / "metrics_summary.csv", "score")["hd95_ET"]
    assert list(line.values()) == ["0", *5 * [""], "1", "0", "", "0"]
    assert math.isnan(engine.state.metrics["hd95_ET"])


def test_uncertainty_in_the_tables(tmp_path: Path) -> None:
    """Doubt of 50 everywhere filters all until 47.5; without doubt nothing is filtered. Of areas less is better."""
    brain = tumour() > 0
    cases = [
        scored(f"doubt_{doubt}", 0, brain=brain, uncertainty_ET=torch.full((24, 24, 24), float(doubt)))
        for doubt in (0, 50)
    ]
    evaluate(UncertainCaseScores(str(tmp_path / "metrics.csv")), cases)
    table = read(tmp_path / "metrics.csv")
    names = [f"{name}_ET" for name in ("score", "dice_auc", "ftp_auc", "ftn_auc")]
    assert sorted(list(table["doubt_0"])[7:-1]) == sorted(names)
    assert [float(table["doubt_0"][name]) for name in names] == pytest.approx([1, 1, 0, 0])
    assert [float(table["doubt_50"][name]) for name in names] == pytest.approx([0.675, 1, 0.4875, 0.4875])
    summary = read(tmp_path / "metrics_summary.csv", "score")
    ends = {name: [float(summary[name][end]) for end in ("worst", "best")] for name in names}
    expected = dict(zip(names, ([0.675, 1], [1, 1], [0.4875, 0], [0.4875, 0]), strict=True))
    assert all(ends[name] == pytest.approx(expected[name]) for name in names)


def test_a_table_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the new table is complete, the old one lies there."""
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    seen = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        seen.append((target.name, target.exists() and target.read_text(), len(self.read_text().splitlines())))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    evaluate(UncertainCaseScores(str(path)), [scored("a", 1)])
    assert seen == [("metrics.csv", "old", 2), ("metrics_summary.csv", False, 8)]


def test_report_of_an_inference(tmp_path: Path) -> None:
    """Voxels of 3 cubic mm: 216 of ET, 1000 - 216 of NCR, 2744 - 1000 of ED."""
    handler = CaseReport(str(tmp_path / "report.csv"), structures={"NCR": [NCR], "ED": [ED], "ET": [ET]})
    evaluate(handler, [("a", {"pred": meta(tumour())})])
    expected = {"NCR_ml": "2.35", "ED_ml": "5.23", "ET_ml": "0.65", "image": "a/scan_flair.nii.gz", "error": ""}
    assert read(tmp_path / "report.csv") == {"a": expected}
