"""Tables of scores: CSV files with one row per case, and text for the terminal."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tools.files import read_table
from tools.shared.files import atomic_write

Rows = Sequence[Mapping[str, str]]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Reads a CSV with one row per case and the columns `case` and `dice`."""
    return read_table(path, columns=("case", "dice"))


def write_metrics(metrics: Rows, path: Path) -> None:
    """Writes rows as CSV; the file appears complete or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(metrics[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(metrics)
    with atomic_write(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def table(metrics: Rows) -> str:
    """Lays out `metrics` as a text table; its last row has the means over the cases where a score is finite."""
    columns = {name: [_number(row[name]) for row in metrics] for name in metrics[0]}
    cells = [
        [row[name] if columns[name][i] is None else f"{columns[name][i]:.3f}" for name in row]
        for i, row in enumerate(metrics)
    ]
    return _laid_out([list(columns)], cells, [["mean", *map(_mean, list(columns.values())[1:])]])


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
    return _laid_out([["mean", "method", *groups]], *blocks, left=2)


def _laid_out(*blocks: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width, the first `left` to the left; a rule between the blocks of rows."""
    widths = [max(map(len, column)) for column in zip(*(row for block in blocks for row in block), strict=True)]
    rule = "\n" + "-" * (sum(widths) + 2 * (len(widths) - 1)) + "\n"

    def line(row: Sequence[str]) -> str:
        aligned = (str.ljust if i < left else str.rjust for i in range(len(row)))
        return "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))

    return rule.join("\n".join(map(line, block)) for block in blocks)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mean(column: Iterable[float | None]) -> str:
    finite = [value for value in column if value is not None and math.isfinite(value)]
    return f"{statistics.fmean(finite):.3f}" if finite else ""
