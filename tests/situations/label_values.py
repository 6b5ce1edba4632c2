"""Label maps whose values mean something else than they are taken for."""

from __future__ import annotations

import numpy as np

from tests.situations import Refused, Scene, Situation
from tests.spoilt import array, rewrite

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


SITUATIONS = [
    Situation(
        "labels of two conventions",
        of_2023,
        Refused(["{case}", "has 3 for enhancing tumour, and 4 has case ", "a data set has one convention"]),
        bundles=BRATS,
        commands=["train"],
    ),
    Situation(
        "labels with a resection cavity",
        with_cavity,
        Refused(["{case}", "label values 3 and 4 must not be in one file", "resection cavity", "set it to 0"]),
        bundles=BRATS[:1],
        commands=["evaluate"],
    ),
]
