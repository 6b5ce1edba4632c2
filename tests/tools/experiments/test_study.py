"""Demos over seeds: means, gains and their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import study as studies


def test_record_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dice = {"student": {0: (0.4, 0.6), 1: (0.7, 0.9)}, "HAD-Net": {0: (0.6, 0.8), 1: (0.7, 0.7)}}

    def run(bundle: str, recipe: Any, root: Path, settings: Any, seed: int) -> tuple[list[str], list[dict[str, str]]]:
        assert recipe["compare"]["control"] == ["supervised.yaml"]
        names = ("dice_ET", "dice_TC", "dice_WT", "dice")
        rows = [
            {"method": method, "case": str(case), **dict.fromkeys(names, str(value))}
            for method, by_seed in dice.items()
            for case, value in enumerate(by_seed[seed])
        ]
        return [f"run --output_dir {root}/x"], rows

    monkeypatch.setattr(studies, "_run", run)
    path = studies.study(
        "hadnet_brats_mri",
        str(tmp_path),
        ours="HAD-Net",
        others=["student", "control"],
        score="dice_ET",
        variants={"control": ["supervised.yaml"]},
        seeds=(0, 1),
    )
    record = json.loads(path.read_text())
    assert record["commands"] == ["run --output_dir OUTPUT/x"]
    assert record["scores"]["student"]["dice"] == {"mean": 0.65, "seeds": {"0": 0.5, "1": 0.8}}
    assert record["gain of HAD-Net in dice_ET"] == {"student": {"mean": 0.05, "seeds": {"0": 0.2, "1": -0.1}}}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | dice_ET | dice_TC | dice_WT | dice |"
    assert lines[2] == "| student |" + 4 * " 0.650 (0.500, 0.800) |"
    assert len(lines) == 4
