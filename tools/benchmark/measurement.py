"""Measuring rows: parity gate, peak memory, then alternating repeats."""

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

from tools.benchmark.meters import Time, counted, peak_flops, peak_memory, prompt_heap, restart_memory, timed
from tools.benchmark.parity import Parity, compare, snapshot
from tools.benchmark.row import Row, Work

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SettingResult:
    """Figures of one setting.

    Attributes:
        seconds: Wall time of every repeat.
        median: Median of `seconds`.
        quartiles: First and third quartile of `seconds`.
        cpu_seconds: Median processor time, all cores and child processes together.
        peak_bytes: Peak memory of one unit on top of what was in use before the preparation: weights, optimizer
            state and caches of the setting included, shared inputs not. `None` where it cannot be seen.
        dtype: Type of the bulk of the arithmetic.
        flops_per_second: The row's work over the median; `None` without arithmetic.
        floor_share: Time the same work takes at the device's measured peak in this type, over the median.
        speed_up: Median of `baseline`, or of `plain` where there is none, over this median.
    """

    seconds: list[float]
    median: float
    quartiles: tuple[float, float]
    cpu_seconds: float
    peak_bytes: int | None
    dtype: str
    flops_per_second: float | None
    floor_share: float | None
    speed_up: float


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Figures of one row.

    Attributes:
        row: Name of the row.
        unit: What one unit of work is.
        void: Why the row has no figures, else empty.
        work: Floating-point operations of one unit; 0 where it is not arithmetic.
        parity: Agreement of every setting with `plain`.
        settings: Figures by setting, none if the row is void.
    """

    row: str
    unit: str
    void: str = ""
    work: int = 0
    parity: dict[str, Parity] = field(default_factory=dict)
    settings: dict[str, SettingResult] = field(default_factory=dict)


class _SettingError(Exception):
    """A setting raised; the message names both."""


def measure(rows: Sequence[Row], *, device: torch.device, repeats: int = 5) -> list[RowResult]:
    """Check all rows for parity and peak memory, then time them.

    Each setting is prepared afresh three times: for one unit whose outputs pass the parity gate; for one unit of
    warm-up and one of peak memory; for one unit of warm-up and `repeats` timed ones, the settings taking turns
    (A B C A B C ...). Memory comes before all timing because it is most exact on a heap without holes.

    Args:
        rows: The workloads.
        device: Where the rows compute.
        repeats: Timed units per setting, at least 1.

    Returns:
        One result per row. Settings that disagree or raise make their row void; the others are still measured.

    Raises:
        ValueError: If `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    with prompt_heap():
        observed = [_observe(row, device) for row in rows]
    return [
        result if result.void else _clock(row, result, peaks, repeats=repeats, device=device)
        for row, (result, peaks) in zip(rows, observed, strict=True)
    ]


@contextmanager
def _step(bar: tqdm[NoReturn], name: str) -> Iterator[None]:
    """Show the setting at work, advance the bar by one unit, and name the setting in what it raises."""
    bar.set_postfix_str(name)
    try:
        yield
    except Exception as error:
        raise _SettingError(f"{name}: {type(error).__name__}: {error}") from error
    bar.update()


def _bar(row: Row, aim: str, units: int) -> tqdm[NoReturn]:
    return tqdm(total=len(row.settings) * units, desc=f"{row.name}: {aim}", unit="unit", disable=None)


def _observe(row: Row, device: torch.device) -> tuple[RowResult, dict[str, int | None]]:
    """Return work, parity and what may make the row void, and the peak memory of each setting."""
    blank = RowResult(row=row.name, unit=row.unit)
    with _bar(row, "results and memory", 3) as bar:
        try:
            work, parity, has_outputs = _compare(row, bar)
            void = "; ".join(f"{name}: {verdict.reason}" for name, verdict in parity.items() if not verdict.agrees)
            result = replace(blank, void=void, work=work, parity=parity)
            peaks = {} if void else {name: _peak(row, name, device, bar) for name in row.settings}
        except _SettingError as error:
            _LOGGER.exception("row %s", row.name)
            return replace(blank, void=str(error)), {}
    return result, peaks if has_outputs else dict.fromkeys(peaks)


def _compare(row: Row, bar: tqdm[NoReturn]) -> tuple[int, dict[str, Parity], bool]:
    """Return the operations of one unit, the parity of the settings, and whether there are outputs at all."""
    with _step(bar, "plain"):
        manual_seed(0)
        work = row.settings["plain"].prepare()
        outputs, flops = counted(work) if row.work is None else (work(), row.work)
        expected = snapshot(outputs)
        del work, outputs
    parity = {}
    for name, setting in row.settings.items():
        if name != "plain":
            with _step(bar, name):
                manual_seed(0)
                actual = snapshot(setting.prepare()())
                parity[name] = compare(actual, expected, atol=setting.atol, rtol=setting.rtol)
    return flops, parity, bool(expected)


def _peak(row: Row, name: str, device: torch.device, bar: tqdm[NoReturn]) -> int | None:
    before = restart_memory(device)
    work = _prepare(row, name, bar)
    restart_memory(device)
    with _step(bar, name):
        work()
    return None if before is None else peak_memory(device) - before


def _prepare(row: Row, name: str, bar: tqdm[NoReturn]) -> Work:
    """Prepare a setting and warm it up."""
    with _step(bar, name):
        manual_seed(0)
        work = row.settings[name].prepare()
        work()
    return work


def _clock(
    row: Row, result: RowResult, peaks: dict[str, int | None], *, repeats: int, device: torch.device
) -> RowResult:
    """Time a row and complete its result."""
    times: dict[str, list[Time]] = {name: [] for name in row.settings}
    with _bar(row, "time", 1 + repeats) as bar:
        try:
            works = {name: _prepare(row, name, bar) for name in row.settings}
            for _ in range(repeats):
                for name, work in works.items():
                    with _step(bar, name):
                        times[name].append(timed(work, device))
        except _SettingError as error:
            _LOGGER.exception("row %s", row.name)
            return replace(result, void=str(error))
    return replace(result, settings=_figures(row, times, peaks, work=result.work, device=device))


def _figures(
    row: Row, times: dict[str, list[Time]], peaks: dict[str, int | None], *, work: int, device: torch.device
) -> dict[str, SettingResult]:
    medians = {name: float(np.median([unit.wall for unit in units])) for name, units in times.items()}
    yardstick = medians.get("baseline", medians["plain"])
    results = {}
    for name, setting in row.settings.items():
        seconds, median = [unit.wall for unit in times[name]], medians[name]
        first, third = np.percentile(seconds, (25, 75)).tolist()
        rate = work / median if work else None
        peak = peak_flops(device, setting.dtype, threads=torch.get_num_threads()) if rate else None
        results[name] = SettingResult(
            seconds=seconds,
            median=median,
            quartiles=(first, third),
            cpu_seconds=float(np.median([unit.cpu for unit in times[name]])),
            peak_bytes=peaks[name],
            dtype=str(setting.dtype).removeprefix("torch."),
            flops_per_second=rate,
            floor_share=rate / peak if rate and peak else None,
            speed_up=yardstick / median,
        )
    return results
