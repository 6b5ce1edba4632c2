"""Trainings that many tests look at: each stage is trained once for them."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NamedPath
from tests.support.runs import copy, is_variant, run, stages

Trajectory = Callable[[str, str], Path]
EPOCHS = 2
SETTINGS: dict[str, Any] = {"max_epochs": EPOCHS, "val_interval": 1, "seed": 1}


def store(folder: Path) -> str:
    """Address of the MLflow store that the trajectories of a process share."""
    return f"sqlite:///{folder / 'mlruns.db'}"


@pytest.fixture(scope="session")
def trajectory(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """Folder of a stage that started from the `tiny_weights`, with `SETTINGS`, tracked by MLflow too; read only."""
    parent = tmp_path_factory.mktemp("trajectories")

    @cache
    def folder(bundle: str, stage: str) -> Path:
        target = parent / bundle / stage
        copy(tiny_weights(bundle), target / "models")
        tracked = {"tracking": "mlflow", "tracking_uri": store(parent)}
        run(bundle, stage, data=phantoms(bundle), folder=target, **SETTINGS, **tracked)
        return target

    return folder


@pytest.fixture(scope="session")
def trained(tiny_weights: NamedPath, trajectory: Trajectory, tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """Folder with the outputs of a bundle's stages, in their order; read only."""

    @cache
    def folder(bundle: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_trained")
        before = tiny_weights(bundle)
        copy(before, target / "models")
        for stage in (name for name in stages(bundle, "training") if not is_variant(bundle, name)):
            for path in (trajectory(bundle, stage) / "models").iterdir():
                earlier = before / path.name
                if not (earlier.is_file() and filecmp.cmp(path, earlier, shallow=False)):
                    shutil.copy(path, target / "models")
        return target

    return folder
