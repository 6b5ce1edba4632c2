"""Label maps whose values mean something else than they are taken for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.contract.situations import Invalid, Scene, Situation
from tests.support.corruption import array, rewrite

BRATS = ["hadnet_brats_mri", "lachinov_distillation_brats_mri"]


def of_2023(scene: Scene) -> None:
    """Enhancing tumour of the first validation case is 3 instead of 4."""
    file = scene.cases["validation"][0]["label"]
    rewrite(file, np.where(array(file) == 4, 3, array(file)).astype(np.uint8))
    scene.options["restart"] = True


def with_cavity(scene: Scene) -> None:
    """As BraTS 2024: 3 enhances, and 4 is another structure."""
    of_2023(scene)
    file = scene.cases["validation"][0]["label"]
    label = array(file).copy()
    label[tuple(np.argwhere(label == 1)[0])] = 4
    rewrite(file, label)


def of_the_decathlon(scene: Scene) -> None:
    """The first validation case is one of Task01, re-organised: enhancing tumour is 3, and oedema comes first."""
    of_2023(scene)
    folder = Path(scene.cases["validation"][0]["image"]).parent
    folder.rename(folder.with_name("BRATS_009"))
    split = {"training": [case["case"] for case in scene.cases["training"]], "validation": ["BRATS_009"]}
    (scene.folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    scene.options["split_file"] = str(scene.folder / "split.json")


SITUATIONS = [
    Situation(
        "labels of the Decathlon",
        of_the_decathlon,
        Invalid(["BRATS_009", "where 1 is oedema and 2 the core: label_order [ED, NCR, ET] says so"]),
        bundles=BRATS[:1],
        commands=["evaluate"],
    ),
    Situation(
        "labels of two conventions",
        of_2023,
        Invalid(["{case}", "has 3 for enhancing tumour, and 4 has case ", "a data set has one convention"]),
        bundles=BRATS,
        commands=["train"],
    ),
    Situation(
        "labels with a resection cavity",
        with_cavity,
        Invalid(["{case}", "label values 3 and 4 must not be in one file", "resection cavity", "set it to 0"]),
        bundles=BRATS[:1],
        commands=["evaluate"],
    ),
]
