"""Tables of cases as HTML: what they sum up to, and every row, to be sorted."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from tools.report.charts import fixed
from tools.report.runs import Table

GROUPS = ("method", "set")  # columns by which cases are told apart
HIGHER = re.compile(r"dice|iou|jaccard|sensitivity|specificity|precision|recall|accuracy", re.IGNORECASE)
LOWER = re.compile(r"hd|hausdorff|assd|asd|distance|error|loss", re.IGNORECASE)
LONG = 24  # rows; a longer summary is folded

Rows = Sequence[Mapping[str, str]]


def summary(table: Table) -> str:
    """For every group of cases and every score: cases, mean, standard deviation, median, worst."""
    groups = [name for name in GROUPS if name in table.columns]
    parts: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in table.rows:
        parts.setdefault(tuple(row[name] for name in groups), []).append(row)
    body = [_summed(key, rows, score) for key, rows in parts.items() for score in table.scores]
    heads = [*groups, "score", "cases", "mean", "SD", "median", "worst"]
    marks = "".join(f"<th{'' if i <= len(groups) else ' class=n'}>{escape(name)}</th>" for i, name in enumerate(heads))
    inside = f"<thead><tr>{marks}</tr></thead><tbody>{''.join(body)}</tbody>"
    html = f'<div class="wide"><table class="summary">{inside}</table></div>'
    return html if len(body) <= LONG else f"<details><summary>{len(body)} scores and groups</summary>{html}</details>"


def every_row(table: Table) -> str:
    """All rows; a click on a heading sorts them."""
    largest = {name: _largest(table.rows, name) for name in table.scores}
    kinds = {name: ' class="n"' if name in largest else "" for name in table.columns}
    heads = "".join(
        f'<th{kind} aria-sort="none"><button type="button">{escape(name)}</button></th>' for name, kind in kinds.items()
    )
    rows = ("".join(_cell(row[name], largest.get(name)) for name in table.columns) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="sortable">{inside}</table></div>'


def ranked(table: Table) -> list[Mapping[str, str]]:
    """Rows from the worst to the best by their Dice coefficient; none if the table has no such column."""
    rows = [row for row in table.rows if math.isfinite(_value(row.get("dice", "")))]
    return sorted(rows, key=lambda row: _value(row["dice"]))


def _summed(key: tuple[str, ...], rows: Rows, score: str) -> str:
    finite = [value for row in rows if math.isfinite(value := _value(row[score]))]
    cells = [f"{len(finite)} of {len(rows)}" if len(finite) < len(rows) else str(len(rows))]
    known = _statistics(finite, score) if finite else [None] * 4
    cells += ["–" if value is None else fixed(value, _largest(rows, score)) for value in known]
    names = "".join(f"<td>{escape(name)}</td>" for name in (*key, score))
    return f"<tr>{names}{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"


def _statistics(values: Sequence[float], score: str) -> list[float | None]:
    """Mean, standard deviation, median and worst of a score, as far as they are known."""
    worst = min if HIGHER.search(score) else max if LOWER.search(score) else None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return [statistics.fmean(values), spread, statistics.median(values), worst(values) if worst else None]


def _cell(text: str, largest: float | None) -> str:
    """A cell; of a column of numbers, if `largest` is one."""
    if largest is None:
        return f"<td>{escape(text)}</td>"
    value = _value(text)
    return f'<td class=n data-value="{"" if math.isnan(value) else value}">{fixed(value, largest) if text else ""}</td>'


def _largest(rows: Rows, name: str) -> float:
    return max((abs(value) for row in rows if math.isfinite(value := _value(row[name]))), default=0.0)


def _value(text: str) -> float:
    return float(text) if text else math.nan
