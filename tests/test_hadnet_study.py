"""The method's effect on phantoms: what distillation gives a student that cannot see the contrast agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.recipes.hadnet_brats_mri.study import study, table


def test_table_has_a_row_for_each_method() -> None:
    found = {"mean": 0.5, "seeds": {"0": 0.4, "1": 0.6}}
    scores = {name: dict.fromkeys(("dice_ET", "dice_TC", "dice_WT", "dice"), found) for name in ("student", "HAD-Net")}
    lines = table(scores).splitlines()
    assert lines[0] == "| | dice_ET | dice_TC | dice_WT | dice |"
    assert lines[2] == "| student |" + 4 * " 0.500 (0.400, 0.600) |"
    assert len(lines) == 4


@pytest.mark.slow
def test_distillation_improves_enhancing_tumour(tmp_path: Path) -> None:
    """In each of three seeds, with a margin on average; the teacher, which sees it, stays ahead."""
    record = json.loads(study(str(tmp_path), control=False).read_text())
    gain = record["gain on ET"]["student"]
    assert min(gain["seeds"].values()) > 0
    assert gain["mean"] > 0.05
    teacher, student = (record["scores"][name]["dice_ET"] for name in ("teacher", "HAD-Net"))
    assert teacher["mean"] > student["mean"] + 0.1
