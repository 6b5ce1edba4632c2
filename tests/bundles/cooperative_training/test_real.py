"""Both methods on real scans: a short training of ten patients, tested on held-out, corrupted and foreign ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.experiments.cooperative_training_acdc_mri.study import CORRUPTIONS, study


@pytest.mark.nightly
def test_study(real_data: Path, tmp_path: Path) -> None:
    """After twelve epochs the left ventricle is found, and hard examples do more for corrupted than for clean scans.

    In the recorded study the difference is 2 to 5 points in each of three seeds; the slack is what rounding can change.
    """
    path = study(
        str(real_data / "acdc"),
        str(tmp_path),
        sunnybrook=str(real_data / "sunnybrook"),
        seeds=[0],
        draws=1,
        overlays=["reduced", "bfloat16"],
        max_epochs=12,
    )
    scores = {method: by["slow"] for method, by in json.loads(path.read_text())["scores"].items()}
    for sets in scores.values():
        assert set(sets) == {"clean", "Sunnybrook", "corrupted average", *CORRUPTIONS}
        assert sets["clean"]["dice_LV"]["mean"] > 0.5
    gain = {
        name: scores["cooperative"][name]["dice"]["mean"] - found["dice"]["mean"]
        for name, found in scores["standard"].items()
        if "dice" in found
    }
    assert gain["corrupted average"] > gain["clean"] - 0.02
