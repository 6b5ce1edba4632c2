"""The study of the method's effect on phantoms; its result is in the model card."""

from __future__ import annotations

from tools.recipes.hadnet_brats_mri.study import table


def test_table_has_a_row_for_each_method() -> None:
    found = {"mean": 0.5, "seeds": {"0": 0.4, "1": 0.6}}
    scores = {name: dict.fromkeys(("dice_ET", "dice_TC", "dice_WT", "dice"), found) for name in ("student", "HAD-Net")}
    lines = table(scores).splitlines()
    assert lines[0] == "| | dice_ET | dice_TC | dice_WT | dice |"
    assert lines[2] == "| student |" + 4 * " 0.500 (0.400, 0.600) |"
    assert len(lines) == 4
