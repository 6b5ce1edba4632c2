"""Cases that fail once a run has begun: each has its row, and the others get their results."""

from __future__ import annotations

from tests.conftest import NAMES
from tests.contract.situations import Failed, Invalid, Scene, Situation
from tests.support.corruption import cut
from tests.support.runs import copy, run


def unchecked(scene: Scene) -> None:
    """The first validation case breaks after the checks."""
    cut(scene.cases["validation"][0]["image"])
    scene.options["check_cases#_target_"] = "builtins.dict"


def for_the_second_time(scene: Scene) -> None:
    """The first validation case breaks after a run that segmented it."""
    run(scene.bundle, "inference", data=scene.data, folder=scene.folder)
    unchecked(scene)


def unchecked_training(scene: Scene) -> None:
    """The same before a training that starts again."""
    unchecked(scene)
    scene.options["restart"] = True


def several_sets(scene: Scene) -> None:
    """The same, with a second folder of the same patients that are well."""
    target = copy(scene.data, scene.data.with_name("again"))
    unchecked(scene)
    scene.options["test_sets"] = {"again": str(target)}


SITUATIONS = [
    Situation("a scan breaks after the checks", unchecked, Failed(["Error"]), commands=["inference", "evaluate"]),
    Situation("a scan has a mask of an earlier run", for_the_second_time, Failed(["Error"]), bundles=NAMES[2:3]),
    Situation(
        "a scan to validate on breaks after the checks",
        unchecked_training,
        Invalid(["case {case}: "]),
        bundles=[NAMES[0], NAMES[2]],
        commands=["train"],
    ),
    Situation("of several sets", several_sets, Failed(["Error"]), bundles=NAMES[:1], commands=["evaluate"]),
]
