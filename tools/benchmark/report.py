"""What was measured where: the machine, a table for the reader, JSON for the record."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tools import REPO
from tools.benchmark.measurement import CaseResult, VariantResult
from tools.shared.files import write_text
from tools.tables import aligned

_COLUMNS = (
    "case",
    "variant",
    "median",
    "quartiles",
    "speed-up",
    "memory",
    "CPU time",
    "deviation",
)
_LEGEND = """\
median, quartiles: wall time of one unit. speed-up: against `baseline` where there is one, else against `eager`.
memory: peak of one unit, the variant's own weights and caches included. CPU time: all cores and child processes.
deviation: largest absolute difference of the outputs from those of `eager`.
"""


def environment(device: torch.device) -> dict[str, Any]:
    """Describe command, code, libraries and machine.

    Args:
        device: Where the cases compute.

    Returns:
        Plain data, ready for JSON; `commit` is `None` outside a git checkout and ends in `-dirty` on local changes.
    """
    cuda = device.type == "cuda"
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda if cuda else None}
        | {name: version(name) for name in ("torch", "monai", "numpy")},
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": {"type": device.type, "name": torch.cuda.get_device_name(device) if cuda else _cpu_model()},
    }


def recorded(results: Mapping[str, Sequence[CaseResult]], *, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record: `environment`, and under `cases` all results as plain data."""
    cases = [{"bundle": bundle} | asdict(result) for bundle, part in results.items() for result in part]
    return {**environment, "cases": cases}


def write_json(path: Path, results: Mapping[str, Sequence[CaseResult]], *, environment: Mapping[str, Any]) -> None:
    """Write the record in one step, so that a reader never sees half of it.

    Args:
        path: Target; an existing file is replaced, missing folders are created.
        results: Results by bundle.
        environment: Result of `environment`.
    """
    content = recorded(results, environment=environment)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def table(environment: Mapping[str, Any], results: Mapping[str, Sequence[CaseResult]]) -> str:
    """Lay the results out as text.

    Args:
        environment: Result of `environment`.
        results: Results by bundle.

    Returns:
        One line per variant, one per invalid case, and a legend.
    """
    text = f"{environment['device']['name']}, {environment['threads']} CPU threads\n"
    for bundle, part in results.items():
        lines = [_COLUMNS, *(line for result in part for line in _lines(result))]
        text += f"\n{bundle}\n{aligned(lines, left=2)}\n"
        text += "".join(f"{result.case}: one unit is {result.unit}\n" for result in part)
        text += "".join(f"{result.case} is INVALID: {result.invalid}\n" for result in part if result.invalid)
    return f"{text}\n{_LEGEND}"


def digits(value: float) -> str:
    """Returns a number of three significant digits, without an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def seconds(value: float) -> str:
    """Returns a time with its unit, from microseconds to seconds."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if value >= s), (1e-6, "us"))
    return f"{digits(value / scale)} {unit}"


def _lines(result: CaseResult) -> list[tuple[str, ...]]:
    if result.invalid:
        return [(result.case, "invalid", *[""] * (len(_COLUMNS) - 2))]
    return [_line(result, name, figures) for name, figures in result.variants.items()]


def _line(result: CaseResult, name: str, figures: VariantResult) -> tuple[str, ...]:
    memory = figures.peak_bytes
    deviation = result.parity[name].deviation if name in result.parity else None
    return (
        result.case,
        name,
        seconds(figures.median),
        " .. ".join(map(seconds, figures.quartiles)),
        f"{figures.speed_up:.2f}x",
        "-" if memory is None else f"{digits(memory / 2**20)} MiB",
        seconds(figures.cpu_seconds),
        "-" if deviation is None else f"{deviation:.1e}",
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    run = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None
