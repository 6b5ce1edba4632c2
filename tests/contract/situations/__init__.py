"""What messy data, damaged files and unlucky moments do to a run: one table, a module for each kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import NAMES
from tests.support.runs import Case


@dataclass
class Scene:
    """What a situation may change before the command runs, all in folders of its own."""

    bundle: str
    data: Path  # phantoms in the layout of the bundle's data
    cases: dict[str, list[Case]]  # of `data`, by split
    folder: Path  # weights in `models`; results go to `eval`
    options: dict[str, Any] = field(default_factory=dict)  # of the command


@dataclass(frozen=True)
class Same:
    """The run ends well, and the mask of the case is, voxel by voxel, that of the clean scan.

    Args:
        files: returns the changed scan's file and the array of the clean scan's mask as it must lie on it now; by
            default the file and the mask as they were.
    """

    files: Callable[[Scene, Any], tuple[Path, Any]] | None = None


@dataclass(frozen=True)
class Invalid:
    """The run ends before any scan is segmented or weight trained, with a message that has these parts in one line.

    `{case}`, `{file}` and `{data}` stand for the first validation case, its image, and the data folder.
    """

    parts: Sequence[str]


@dataclass(frozen=True)
class Failed:
    """The other cases get their results, each case has one row, the run ends with an error that counts the failed.

    The row of the first validation case has a message with these parts, and it has no mask.
    """

    parts: Sequence[str]


@dataclass(frozen=True)
class Situation:
    """One row of the table.

    Args:
        name: what is wrong, in a few words.
        make: brings it about; what it returns is left alone.
        wanted: the outcome.
        bundles: in which bundles it is tried; one is enough where the module that decides is the same in all.
        commands: workflows of `workflows.yaml` that are tried.
    """

    name: str
    make: Callable[[Scene], Any]
    wanted: Same | Invalid | Failed
    bundles: Sequence[str] = tuple(NAMES)
    commands: Sequence[str] = ("inference",)


def situations() -> dict[str, list[Situation]]:
    """All rows by kind: the lists `SITUATIONS` of the modules of this package."""
    kinds = [module.name for module in pkgutil.iter_modules(__path__)]
    return {kind: importlib.import_module(f"{__name__}.{kind}").SITUATIONS for kind in kinds}
