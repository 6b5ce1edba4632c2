"""The artefacts of corrupted test sets: which transform of TorchIO makes each, and what its settings may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monai.utils import optional_import

from .shared.validation import InputError, Problem

__all__ = ["ARTEFACTS", "check_artefacts", "make_artefact"]

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Limit:
    """Numbers from `low` to `high`: an ascending list of `count` (`None`: any length), or a plain number if it is 1."""

    low: float
    high: float
    whole: bool = False
    count: int | None = 2

    def admits(self, value: Any) -> bool:
        """Tells whether `value` keeps to the limit."""
        numbers = [value] if self.count == 1 else list(value) if isinstance(value, list | tuple) else []
        kinds = (int,) if self.whole else (int, float)
        if (
            not numbers
            or self.count not in (None, len(numbers))
            or any(type(number) not in kinds for number in numbers)
        ):
            return False
        return numbers == sorted(numbers) and self.low <= numbers[0] and numbers[-1] <= self.high

    def __str__(self) -> str:
        number = "whole number" if self.whole else "number"
        what = {1: f"a {number}", 2: f"an ascending pair of {number}s"}.get(self.count or 0, f"a list of {number}s")
        return f"must be {what} from {self.low} to {self.high}"


@dataclass(frozen=True)
class Artefact:
    """A random transform of TorchIO and the limits of its settings; a pair is the range of a uniform draw."""

    transform: str
    limits: Mapping[str, Limit]


ARTEFACTS = {
    "RandomBias": Artefact("RandomBiasField", {"coefficients": Limit(-2, 2), "order": Limit(1, 5, True, 1)}),
    "RandomGhosting": Artefact(
        "RandomGhosting",
        {"num_ghosts": Limit(2, 96, True), "axes": Limit(0, 2, True, None), "intensity": Limit(0, 1)},
    ),
    "RandomMotion": Artefact(
        "RandomMotion",
        {"degrees": Limit(-180, 180), "translation": Limit(-96, 96), "num_transforms": Limit(1, 10, True, 1)},
    ),
    "RandomSpike": Artefact("RandomSpike", {"num_spikes": Limit(1, 100, True), "intensity": Limit(-10, 10)}),
}


def check_artefacts(names: Iterable[str], settings: Settings) -> None:
    """Checks the names of artefacts and all their settings.

    Raises:
        InputError: when an artefact or a setting of it is unknown, or a setting is outside its range.
    """
    rule = f"is unknown, known are {', '.join(ARTEFACTS)}"
    problems = [("", f"corruptions: {name}", rule) for name in names if name not in ARTEFACTS]
    problems += [("", f"settings::{name}", rule) for name in settings if name not in ARTEFACTS]
    for name in ARTEFACTS.keys() & settings.keys():
        problems += _problems_of(name, settings[name])
    if problems:
        raise InputError(problems)


def _problems_of(name: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    limits = ARTEFACTS[name].limits
    for key, value in given.items():
        if key not in limits:
            yield "", f"settings::{name}::{key}", f"is unknown, known are {', '.join(limits)}"
        elif not limits[key].admits(value):
            yield "", f"settings::{name}::{key}", f"{limits[key]}, got {value}"


def make_artefact(name: str, settings: Mapping[str, Any]) -> Any:
    """Returns TorchIO's random transform; what `settings` leaves out has TorchIO's default."""
    torchio, _ = optional_import("torchio")
    return getattr(torchio, ARTEFACTS[name].transform)(**settings)
