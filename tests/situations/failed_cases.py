"""Cases that fail once a run has begun: each has its row, the others get their results, the run says so and ends with an error."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import NAMES
from tests.situations import Failed, Scene, Situation
from tests.spoilt import cut

SKIPPED = ("check_cases", "check_stacks", "check_members")


def unchecked(scene: Scene) -> None:
    """The first validation case breaks after the checks."""
    cut(scene.cases["validation"][0]["image"])
    scene.options |= dict.fromkeys(SKIPPED if scene.bundle.startswith(("coop", "lach")) else SKIPPED[:1], "$None")


def at(place: str) -> Situation:
    """A transform that fails for the first validation case, at some place of the config."""

    def make(scene: Scene) -> None:
        name = scene.cases["validation"][0]["case"]

    return Situation(place, make, Failed(["ValueError"]))


SITUATIONS = [
    Situation("a scan breaks after the checks", unchecked, Failed(["Error"]), bundles=NAMES, commands=["inference", "evaluate"]),
]
