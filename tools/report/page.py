"""The page: sections put into `page.html`, which has the style sheet and the script."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from tools.report.charts import chart, grouped
from tools.report.figures import case_figures
from tools.report.runs import Found, Table, Training
from tools.report.scores import every_row, summary
from tools.report.settings import details, run_list

TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
NO_RECORD = "No run has left a record here, so its settings, versions, date and device are not known."


def page(found: Found, *, data: Path | None, shown: int) -> str:
    """The whole page; whatever comes from files is escaped.

    Args:
        found: what is to be shown.
        data: see `report`.
        shown: see `report`.
    """
    names = {str(record.content.get("bundle", {}).get("name", "")) for record in found.records} - {""}
    title = ", ".join(sorted(names)) or found.folder.resolve().name
    sections = [
        ("runs", "Runs", run_list(found.records, found.folder) if found.records else _note(NO_RECORD)),
        ("curves", "Curves", "".join(map(_training, found.trainings)) or _note("No training has logged curves here.")),
        (
            "cases",
            "Cases",
            "".join(_tables(found, data=data, shown=shown)) or _note("Nothing has been evaluated here."),
        ),
        ("settings", "Settings and versions", "".join(map(details, found.records)) or _note(NO_RECORD)),
    ]
    return TEMPLATE.substitute(
        title=escape(title),
        folder=escape(str(found.folder.resolve())),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        links="".join(f'<a href="#{id_}">{heading}</a>' for id_, heading, _ in sections),
        sections="".join(f'<section id="{id_}"><h2>{heading}</h2>{html}</section>' for id_, heading, html in sections),
    )


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _training(training: Training) -> str:
    steps = {step for curve in training.curves.values() for step in curve}
    span = min(steps), max(steps)
    charts = "".join(chart(heading, curves, span=span) for heading, curves in grouped(training.curves).items())
    return f'<h3>{escape(training.title)}</h3><div class="charts">{charts}</div>'


def _tables(found: Found, *, data: Path | None, shown: int) -> Iterator[str]:
    for table in found.tables:
        name = table.path.relative_to(found.folder).as_posix()
        kind = f"{table.record.title}, " if table.record else ""
        drawn = case_figures(table, data=data, shown=shown) if _is_evaluation(table) else ""
        yield (
            f"<h3>{escape(kind)}<code>{escape(name)}</code></h3>{summary(table)}{drawn}"
            f"<details open><summary>All {len(table.rows)} rows</summary>{every_row(table)}</details>"
        )


def _is_evaluation(table: Table) -> bool:
    """Whether it has one row per case; a comparison of methods has more, and their own tables beside it."""
    return table.path.name == "metrics.csv" and "method" not in table.columns
