"""The JSON behind a figure, from tables of evaluations with and without test sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tools.experiments.results
from tools.experiments.results import results


def record(folder: Path, monkeypatch: pytest.MonkeyPatch, *, cases: str, summary: str) -> dict[str, Any]:
    """What `results` makes of two tables; NaN and Infinity, which are no JSON, are rejected."""
    monkeypatch.setattr(tools.experiments.results, "REPO", folder)
    (folder / "metrics.csv").write_text(cases)
    (folder / "metrics_summary.csv").write_text(summary)
    path = results("vnet_atrial_mri", str(folder / "metrics.csv"), name="x", commands=["make it"], seed=3, note="n")
    assert path == folder / "bundles/vnet_atrial_mri/docs/results_x.json"
    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return content


def test_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = "case,found,dice\na,not searched,0.123456789\n"
    found = record(tmp_path, monkeypatch, cases=cases, summary="score,cases,mean\ndice,1,0.123456789\n")
    assert found["cases"] == [{"case": "a", "found": "not searched", "dice": 0.123457}]
    assert found["summary"] == {"dice": {"cases": 1, "mean": 0.123457}}
    assert (found["commands"], found["seed"], found["note"], found["split"]) == (["make it"], 3, "n", None)


def test_several_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of digits stay names; what is no number in JSON stays text."""
    cases = "case,patient,set,dice,hd95\n007,007,clean,0.5,inf\nspike/007,007,spike,0,nan\n"
    summary = "set,score,cases,mean\nclean,dice,1,0.5\nclean,hd95,0,nan\nspike,dice,1,0\n"
    found = record(tmp_path, monkeypatch, cases=cases, summary=summary)
    assert found["cases"] == [
        {"case": "007", "patient": "007", "set": "clean", "dice": 0.5, "hd95": "inf"},
        {"case": "spike/007", "patient": "007", "set": "spike", "dice": 0, "hd95": "nan"},
    ]
    clean = {"dice": {"cases": 1, "mean": 0.5}, "hd95": {"cases": 0, "mean": "nan"}}
    assert found["summary"] == {"clean": clean, "spike": {"dice": {"cases": 1, "mean": 0}}}
