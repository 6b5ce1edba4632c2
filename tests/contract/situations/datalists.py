"""Lists of cases that do not mean what a bundle would read."""

from __future__ import annotations

import json

from tests.contract.situations import Invalid, Scene, Situation


def of_monai(scene: Scene) -> None:
    """A datalist with the scans to segment under a name that other programs read."""
    cases = {"training": scene.cases["training"], "testing": scene.cases["validation"]}
    scene.data = scene.data.parent / "datalist.json"
    scene.data.write_text(json.dumps(cases))


def with_misnamed_lists(scene: Scene) -> None:
    """A split file of another program."""
    names = sorted(path.name for path in scene.data.iterdir())
    split = scene.folder / "split.json"
    split.write_text(json.dumps({"train": names[1:], "val": names[:1]}))
    scene.options["split_file"] = str(split)


SITUATIONS = [
    Situation(
        "a datalist of unknown lists",
        of_monai,
        Invalid(["datalist.json: ", "'testing' is none of training, validation, test"]),
        bundles=["ensemble_kd_kits_ct", "lachinov_distillation_brats_mri"],
    ),
    Situation(
        "a split file of unknown lists",
        with_misnamed_lists,
        Invalid(["split.json: ", "'val' is none of training, validation, test, is it 'validation'?"]),
        commands=["train"],
        bundles=["vnet_atrial_mri", "cooperative_training_acdc_mri"],
    ),
]
