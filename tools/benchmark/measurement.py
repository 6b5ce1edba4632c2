"""Measuring cases: parity gate, peak memory, then alternating repeats."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import torch
from ignite.utils import manual_seed
from tqdm import tqdm

from tools.benchmark.case import BenchmarkCase, Work
from tools.benchmark.meters import Time, peak_memory, prompt_heap, restart_memory, timed
from tools.benchmark.parity import Parity, compare, snapshot

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """Figures of one variant.

    Attributes:
        seconds: Wall time of every repeat.
        median: Median of `seconds`.
        quartiles: First and third quartile of `seconds`.
        cpu_seconds: Median processor time, all cores and child processes together.
        peak_bytes: Peak memory of one unit on top of what was in use before the preparation: weights, optimizer
            state and caches of the variant included, shared inputs not. `None` where it cannot be seen.
        speed_up: Median of `baseline`, or of `eager` where there is none, over this median.
    """

    seconds: list[float]
    median: float
    quartiles: tuple[float, float]
    cpu_seconds: float
    peak_bytes: int | None
    speed_up: float


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Figures of one case.

    Attributes:
        case: Name of the case.
        unit: What one unit of work is.
        invalid: Why the case has no figures, else empty.
        parity: Agreement of every variant with `eager`.
        variants: Figures by variant, none if the case is invalid.
    """

    case: str
    unit: str
    invalid: str = ""
    parity: dict[str, Parity] = field(default_factory=dict)
    variants: dict[str, VariantResult] = field(default_factory=dict)


class _VariantError(Exception):
    """A variant raised; the message names both."""


def measure(cases: Sequence[BenchmarkCase], *, device: torch.device, repeats: int = 5) -> list[CaseResult]:
    """Check all cases for parity and peak memory, then time them.

    Each variant is prepared afresh three times: for one unit whose outputs pass the parity gate; for one unit of
    warm-up and one of peak memory; for one unit of warm-up and `repeats` timed ones, the variants taking turns
    (A B C A B C ...). Memory comes before all timing because it is most exact on a heap without holes.

    Args:
        cases: The workloads.
        device: Where the cases compute.
        repeats: Timed units per variant, at least 1.

    Returns:
        One result per case. Variants that disagree or raise make their case invalid; the others are still measured.

    Raises:
        ValueError: If `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    with prompt_heap():
        observed = [_observe(case, device) for case in cases]
    return [
        result if result.invalid else _clock(case, result, peaks, repeats=repeats, device=device)
        for case, (result, peaks) in zip(cases, observed, strict=True)
    ]


@contextmanager
def _step(bar: tqdm[NoReturn], name: str) -> Iterator[None]:
    """Show the variant at work, advance the bar by one unit, and name the variant in what it raises."""
    bar.set_postfix_str(name)
    try:
        yield
    except Exception as error:
        raise _VariantError(f"{name}: {type(error).__name__}: {error}") from error
    bar.update()


def _bar(case: BenchmarkCase, aim: str, units: int) -> tqdm[NoReturn]:
    return tqdm(total=len(case.variants) * units, desc=f"{case.name}: {aim}", unit="unit", disable=None)


def _observe(case: BenchmarkCase, device: torch.device) -> tuple[CaseResult, dict[str, int | None]]:
    """Return parity and what may make the case invalid, and the peak memory of each variant."""
    blank = CaseResult(case=case.name, unit=case.unit)
    with _bar(case, "results and memory", 3) as bar:
        try:
            parity, has_outputs = _compare(case, bar)
            invalid = "; ".join(f"{name}: {verdict.reason}" for name, verdict in parity.items() if not verdict.agrees)
            result = replace(blank, invalid=invalid, parity=parity)
            peaks = {} if invalid else {name: _peak(case, name, device, bar) for name in case.variants}
        except _VariantError as error:
            _LOGGER.exception("case %s", case.name)
            return replace(blank, invalid=str(error)), {}
    return result, peaks if has_outputs else dict.fromkeys(peaks)


def _compare(case: BenchmarkCase, bar: tqdm[NoReturn]) -> tuple[dict[str, Parity], bool]:
    """Return the parity of the variants, and whether there are outputs at all."""
    with _step(bar, "eager"):
        manual_seed(0)
        expected = snapshot(case.variants["eager"].prepare()())
    parity = {}
    for name, variant in case.variants.items():
        if name != "eager":
            with _step(bar, name):
                manual_seed(0)
                actual = snapshot(variant.prepare()())
                parity[name] = compare(actual, expected, atol=variant.atol, rtol=variant.rtol)
    return parity, bool(expected)


def _peak(case: BenchmarkCase, name: str, device: torch.device, bar: tqdm[NoReturn]) -> int | None:
    before = restart_memory(device)
    work = _prepare(case, name, bar)
    restart_memory(device)
    with _step(bar, name):
        work()
    return None if before is None else peak_memory(device) - before


def _prepare(case: BenchmarkCase, name: str, bar: tqdm[NoReturn]) -> Work:
    """Prepare a variant and warm it up."""
    with _step(bar, name):
        manual_seed(0)
        work = case.variants[name].prepare()
        work()
    return work


def _clock(
    case: BenchmarkCase, result: CaseResult, peaks: dict[str, int | None], *, repeats: int, device: torch.device
) -> CaseResult:
    """Time a case and complete its result."""
    times: dict[str, list[Time]] = {name: [] for name in case.variants}
    with _bar(case, "time", 1 + repeats) as bar:
        try:
            works = {name: _prepare(case, name, bar) for name in case.variants}
            for _ in range(repeats):
                for name, work in works.items():
                    with _step(bar, name):
                        times[name].append(timed(work, device))
        except _VariantError as error:
            _LOGGER.exception("case %s", case.name)
            return replace(result, invalid=str(error))
    return replace(result, variants=_figures(times, peaks))


def _figures(times: dict[str, list[Time]], peaks: dict[str, int | None]) -> dict[str, VariantResult]:
    medians = {name: float(np.median([unit.wall for unit in units])) for name, units in times.items()}
    yardstick = medians.get("baseline", medians["eager"])
    results = {}
    for name, units in times.items():
        seconds, median = [unit.wall for unit in units], medians[name]
        first, third = np.percentile(seconds, (25, 75)).tolist()
        results[name] = VariantResult(
            seconds=seconds,
            median=median,
            quartiles=(first, third),
            cpu_seconds=float(np.median([unit.cpu for unit in units])),
            peak_bytes=peaks[name],
            speed_up=yardstick / median,
        )
    return results
