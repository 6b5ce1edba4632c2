"""What the rows of every bundle have in common: precision, configs, and the start of a process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.bundle import ConfigParser

from tools.benchmark.row import Row, Setting, Work


class Prepare(Protocol):
    """Prepares the work of a row in full precision, or in the reduced precision of the device."""

    def __call__(self, *, fast: bool) -> Work:
        """Returns the work."""
        ...


def plain_and_fast(prepare: Prepare, device: torch.device, *, atol: float, rtol: float) -> dict[str, Setting]:
    """Returns `plain` in full precision and `fast` in mixed precision, with the tolerance of the latter."""
    return {
        "plain": Setting(prepare=functools.partial(prepare, fast=False)),
        "fast": Setting(prepare=functools.partial(prepare, fast=True), atol=atol, rtol=rtol, dtype=half(device)),
    }


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Returns a context in which matrix products and convolutions have the reduced precision of the device."""
    return torch.autocast(device.type, dtype=half(device), enabled=enabled)


def half(device: torch.device) -> torch.dtype:
    """Returns the reduced precision of a device."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def config(bundle: Path, stem: str, *, changes: Mapping[str, Any]) -> ConfigParser:
    """Returns the parser of a config of the bundle with values changed by id."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / f"{stem}.yaml")
    parser.update(dict(changes))
    return parser


def start_up(bundle: Path) -> Row:
    """Returns the row of a process that imports `monai.bundle`, without and with the whole package of the bundle."""
    modules = sorted(f"{path.parent.name}.{path.stem}" for path in bundle.glob("*/[!_]*.py"))

    def importing(*names: str) -> Setting:
        def process() -> None:
            environment = {**os.environ, "PYTHONPATH": str(bundle)}
            subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], env=environment, check=True)

        return Setting(prepare=lambda: process)

    settings = {"plain": importing("monai.bundle"), "with_package": importing("monai.bundle", *modules)}
    return Row(name="start_up", unit="fresh process", settings=settings, work=0)


def times(size: tuple[int, ...]) -> str:
    """Returns a size for the reader of the table, such as `192x192x10`."""
    return "x".join(map(str, size))
