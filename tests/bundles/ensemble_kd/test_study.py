"""The study on ACDC: which commands it runs, and what it makes of their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.demo.stages import Stage
from tools.experiments.ensemble_kd_kits_ct import study

COMMON: dict[str, Any] = {"dataset_dir": "ACDC", "ckpt_dir": "models"}
TRAINING = {**COMMON, "max_epochs": 3, "epoch_length": 5, "batch_size": 2}


def option(stage: Stage, name: str) -> str | None:
    words = stage.command
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words else None


def test_every_network_has_the_same_budget() -> None:
    """Members, student and control; the student and its control are one network from one seed, with other losses."""
    first = study.members(Path("out"), COMMON, training={**TRAINING, "seed": 0})
    second = study.students(Path("out"), COMMON, training={**TRAINING, "seed": 100}, network="unet")
    trainings = [stage for stage in (*first, *second) if "training" in stage.command]
    assert len(trainings) == 5
    for name in ("max_epochs", "epoch_length", "batch_size"):
        assert len({option(stage, name) for stage in trainings}) == 1
    alone, student = trainings[3:]
    assert [option(stage, "seed") for stage in trainings] == ["0", "0", "0", "100", "100"]
    assert (option(alone, "soft_labels"), option(student, "soft_labels")) == (None, "out/soft_labels")
    files = [str(option(stage, "config_file")) for stage in (alone, student)]
    assert ["train_member" in file for file in files] == [True, False]
    assert all("member_unet" in file for file in files)


def test_members_are_tested_before_the_student_is_chosen() -> None:
    plan = study.members(Path("out"), COMMON, training=TRAINING)
    subsets = [option(stage, "subset") for stage in plan if "evaluating" in stage.command]
    assert subsets == ["validation", "test"] * 3 + [None]
    assert option(plan[-1], "split_file") is None
    assert "annotating" in plan[-1].command


def test_finished_plan_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(study, "run", lambda plan, progress, version: calls.append(len(plan)))
    for _ in range(2):
        study.finish([Stage("title", ["true"])], tmp_path / "members")
    assert calls == [1]


def test_table_of_means() -> None:
    found = {0: {"a": {"dice": 0.5, "hd_LV": 9.0}}, 1: {"a": {"dice": 0.6, "hd_LV": 8.0}}}
    scores = study.over_seeds(found)
    assert scores == {
        "a": {
            "dice": {"mean": 0.55, "seeds": {"0": 0.5, "1": 0.6}},
            "hd_LV": {"mean": 8.5, "seeds": {"0": 9.0, "1": 8.0}},
        }
    }
    assert study.table(scores) == "| | dice |\n|---|---|\n| a | 0.550 |"
