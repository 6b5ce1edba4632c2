"""Tables of scores: CSV files with one row per case, and text for the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tools.files import read_table
from tools.tables import aligned

Rows = Sequence[Mapping[str, str]]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Reads a CSV with one row per case and the columns `case` and `dice`."""
    return read_table(path, columns=("case", "dice"))


def table(metrics: Rows) -> str:
    """Lays out `metrics` as a text table; its last row has the means over the cases where a score is finite."""
    columns = {name: [_number(row[name]) for row in metrics] for name in metrics[0]}
    cells = [
        [row[name] if columns[name][i] is None else f"{columns[name][i]:.3f}" for name in row]
        for i, row in enumerate(metrics)
    ]
    return aligned([list(columns)], cells, [["mean", *map(_mean, list(columns.values())[1:])]])


def comparison(metrics: Rows, *, scores: Sequence[str], across: str | None = None) -> str:
    """Lays out means over cases as a text table: a row for every score and method, a column for every group of cases.

    Args:
        metrics: rows with the column `method`.
        across: column whose values are the groups, for example `set`; without it all cases are one.
        scores: columns to show. Means are over the cases where they are finite.
    """
    named = [row if across else {**row, "": "all cases"} for row in metrics]
    methods, groups = (list(dict.fromkeys(row[name] for row in named)) for name in ("method", across or ""))
    cases: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in named:
        cases.setdefault((row["method"], row[across or ""]), []).append(row)

    def cells(score: str, method: str) -> list[str]:
        means = (_mean(_number(row[score]) for row in cases.get((method, group), [])) for group in groups)
        return [score, method, *means]

    blocks = [[cells(score, method) for method in methods] for score in scores]
    return aligned([["mean", "method", *groups]], *blocks, left=2)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mean(column: Iterable[float | None]) -> str:
    finite = [value for value in column if value is not None and math.isfinite(value)]
    return f"{statistics.fmean(finite):.3f}" if finite else ""
