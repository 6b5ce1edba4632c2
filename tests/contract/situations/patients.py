"""Scans of one patient on both sides of a split."""

from __future__ import annotations

import json
import shutil

from tests.contract.situations import Invalid, Scene, Situation


def divided(scene: Scene) -> None:
    """A split file that lists a second version of a patient who trains as a validation case."""
    names = sorted(path.name for path in scene.data.iterdir())
    shutil.copytree(scene.data / names[0], scene.data / f"{names[0]}_1")
    split = scene.folder / "split.json"
    split.write_text(json.dumps({"training": names[:2], "validation": [f"{names[0]}_1"]}))
    scene.options["split_file"] = str(split)


SITUATIONS = [
    Situation(
        "a patient trains and validates",
        divided,
        Invalid(["_1: ", "split.json: is in validation, another scan of the patient, ", ", in training"]),
        commands=["train"],
    ),
]
