"""The effect of the method on phantoms: pseudo-labels help the student, over three seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.recipes.lachinov_distillation_brats_mri.study import study

MARGIN = 0.02  # in the mean Dice of ET, TC and WT


@pytest.mark.slow
def test_student_beats_the_same_network_on_labels_alone(tmp_path: Path) -> None:
    """One labelled scan, 23 that the ensemble labels; as many steps for the ResUNet on the one as for the student."""
    record = json.loads(study(str(tmp_path), workers=1).read_text())
    gain = record["gain of student in dice"]["resunet"]
    assert len(gain["seeds"]) == 3
    assert gain["mean"] >= MARGIN, gain
