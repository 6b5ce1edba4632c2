"""Options as the command line hands them over; `tests/tools/shared/test_options.py` has the rules one by one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.contract.situations import Invalid, Same, Scene, Situation

VNET, COOP = ["vnet_atrial_mri"], ["cooperative_training_acdc_mri"]


def given(**options: Any) -> Any:
    """Adds options to the command."""
    return lambda scene: scene.options.update(options)


def renamed(scene: Scene) -> None:
    """Gives the data folder a name that MONAI, Python and a shell each take for something else."""
    scene.data = Path(shutil.move(scene.data, scene.data.with_name("1#2 @scans $x")))


def moved(scene: Scene, mask: Any) -> tuple[Path, Any]:
    """The first validation case in the renamed folder."""
    image = Path(scene.cases["validation"][0]["image"])
    return scene.data / image.relative_to(scene.data.with_name("data")), mask


SITUATIONS = [
    Situation("a data folder with # in its name", renamed, Same(moved)),
    Situation("false as a text", given(amp="false"), Same(), bundles=VNET),
    Situation(
        "a number for a list",
        given(patch_size=96),
        Invalid(["--patch_size", "must be a list of 3 numbers", "it is 96"]),
        bundles=VNET,
        commands=("inference", "evaluate", "train"),
    ),
    Situation(
        "a mistyped option",
        given(max_epoch=3),
        Invalid(["--max_epoch", "did you mean --max_epochs"]),
        bundles=VNET,
        commands=("train",),
    ),
    Situation("no such device", given(device="gpu"), Invalid(["--device", "'gpu'"]), bundles=COOP),
    Situation("results into a file", given(output_dir=__file__), Invalid(["--output_dir", __file__]), bundles=COOP),
]
