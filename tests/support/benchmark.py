"""Benchmark cases at sizes for a test, and whether their variants and a foreign implementation agree."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ignite.utils import manual_seed

from tools.benchmark import BenchmarkCase, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")


def module(bundle: str, part: str = "benchmark") -> Any:
    """The module that registers the cases of a bundle, or the one that makes their inputs."""
    return importlib.import_module(f"tools.per_bundle.{bundle}.{part}")


def outputs(case: BenchmarkCase) -> Any:
    """What one unit of the variant `eager` gives."""
    manual_seed(0)
    return case.variants["eager"].prepare()()


def with_baseline(bundle: str, cases: Iterable[BenchmarkCase], text: str, folder: Path) -> list[BenchmarkCase]:
    """The cases with the variant `baseline`, as far as the Python code `text` defines one."""
    path = folder / "baseline.py"
    path.write_text(text)
    return cli.attach({bundle: list(cases)}, path, device=CPU)[bundle]


def disagreements(cases: Iterable[BenchmarkCase]) -> dict[tuple[str, str], str]:
    """Why variants do not agree with `eager`, by case and variant."""
    found = {}
    for case in cases:
        expected = snapshot(outputs(case))
        for name, variant in case.variants.items():
            manual_seed(0)
            verdict = compare(snapshot(variant.prepare()()), expected, atol=variant.atol, rtol=variant.rtol)
            found[case.name, name] = verdict.reason
    return {way: reason for way, reason in found.items() if reason}
