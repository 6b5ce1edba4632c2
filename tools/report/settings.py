"""Runs, their settings and versions as HTML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tools.report.runs import Record


def run_list(records: Sequence[Record], folder: Path) -> str:
    """A table with one row per run."""
    heads = ("run", "bundle", "started", "duration", "device", "cases", "folder")
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _summary(record, folder)) + "</tr>"
        for record in records
    )
    marks = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="wide"><table class="runs"><thead><tr>{marks}</tr></thead><tbody>{rows}</tbody></table></div>'


def details(record: Record) -> str:
    """Command, versions, cases and every setting of a run, folded."""
    given = given_ids(str(record.content.get("command", "")))
    rows = "".join(_row(id_, value, given) for id_, value in flat(record.config) if id_)
    cases = [str(case.get("case", case.get("image", case))) for case in record.content.get("cases", [])]
    versions = "".join(
        f"<li>{escape(name)} <b>{escape(str(text))}</b></li>"
        for name, text in record.content.get("versions", {}).items()
    )
    return (
        f"<details class=run><summary>{escape(record.title)}"
        f'<span class="note"> {record.started:%Y-%m-%d %H:%M:%S}</span></summary>'
        f"<h4>Command</h4><pre>{escape(str(record.content.get('command', '')))}</pre>"
        f'<h4>Versions</h4><ul class="inline">{versions}</ul>'
        f"<h4>Cases</h4><p>{escape(', '.join(cases)) or 'none'}</p>"
        f'<h4>Settings</h4><p class="note">As executed; those that the command line gave are bold.</p>'
        f'<input type="search" placeholder="Search the settings" aria-label="Search the settings">'
        f'<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div></details>'
    )


def flat(value: Any, id_: str = "") -> Iterator[tuple[str, str]]:
    """Ids and texts of all leaves of a config; a list of plain values is one leaf."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from flat(part, f"{id_}::{name}" if id_ else str(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        for index, part in enumerate(value):
            yield from flat(part, f"{id_}::{index}")
    else:
        yield id_, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def given_ids(command: str) -> set[str]:
    """Ids of the settings in a command line."""
    try:
        words = shlex.split(command)
    except ValueError:
        return set()
    return {word[2:].partition("=")[0].replace("#", "::") for word in words if word.startswith("--")}


def _row(id_: str, text: str, given: set[str]) -> str:
    parts = id_.split("::")
    mark = " class=given" if any("::".join(parts[:i]) in given for i in range(1, len(parts) + 1)) else ""
    return f"<tr{mark}><th>{escape(id_)}</th><td>{escape(text)}</td></tr>"


def _summary(record: Record, folder: Path) -> tuple[str, ...]:
    content = record.content
    bundle = content.get("bundle", {})
    seconds = content.get("seconds")
    processes = int(content.get("processes") or 1)
    place = record.path.parent.relative_to(folder).as_posix()
    return (
        record.title,
        f"{bundle.get('name', '')} {bundle.get('version') or ''}".strip(),
        f"{record.started:%Y-%m-%d %H:%M}",
        "did not end (yet)" if seconds is None else duration(float(seconds)),
        f"{content.get('device', '')}{f', {processes} processes' if processes > 1 else ''}",
        str(len(content.get("cases", []))),
        place,
    )


def duration(seconds: float) -> str:
    """For example `1 h 02 min`, `3 min 05 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
