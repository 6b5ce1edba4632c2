"""Summaries of scores; the module is the same in all bundles."""

from __future__ import annotations

from math import inf, isnan, nan, sqrt

import pytest

from tools.shared.tables import statistics, summarise


def test_summary() -> None:
    """Cases without a finite score count neither in the mean nor in the number, infinite ones are counted apart."""
    rows = [
        {"case": "a", "dice_x": 0.5, "hd95_x": 4.0, "asd_y": nan},
        {"case": "b", "dice_x": 0.9, "hd95_x": inf, "asd_y": nan},
        {"case": "c", "dice_x": 0.7, "hd95_x": 1.0, "asd_y": nan},
    ]
    dice, hd95, asd = summarise(rows, [{"x": True, "y": True}, {"x": False, "y": True}, {"x": True, "y": True}])
    spread = sqrt(0.08 / 3)
    expected = {"score": "dice_x", "cases": 3, "mean": 0.7, "sd": spread, "median": 0.7, "worst": 0.5, "best": 0.9}
    assert dice == pytest.approx(expected | {"infinite": 0, "present": 2, "mean_present": 0.6})
    expected = {"score": "hd95_x", "cases": 2, "mean": 2.5, "sd": 1.5, "median": 2.5, "worst": 4, "best": 1}
    assert hd95 == pytest.approx(expected | {"infinite": 1, "present": 2, "mean_present": 2.5})
    assert (asd["score"], asd["cases"], asd["infinite"], asd["present"]) == ("asd_y", 0, 0, 0)
    assert all(isnan(asd[name]) for name in ("mean", "sd", "median", "worst", "best", "mean_present"))


def test_longest_name_of_a_structure_counts() -> None:
    """`x_and_y` is not `y`; what is of no structure is of all cases; names and numbers of cases are no scores."""
    rows = [{"case": "a", "slices": 3, "dice_y": 1.0, "dice_x_and_y": 0.5, "dice": 0.75}]
    lines = {line["score"]: line["present"] for line in summarise(rows, [{"y": False, "x_and_y": True}])}
    assert lines == {"dice_y": 0, "dice_x_and_y": 1, "dice": 1}


def test_summary_of_nothing() -> None:
    assert summarise([], []) == []
    found = statistics([], [])
    assert (found["cases"], found["infinite"], found["present"]) == (0, 0, 0)
    assert isnan(found["mean"])
    assert isnan(found["mean_present"])
