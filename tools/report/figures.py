"""Figures of single cases of an evaluation: where their files are, and the figure as text for a page."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from tools.report.charts import fixed
from tools.report.figure import Case, case_figure
from tools.report.runs import Record, Table
from tools.report.scores import ranked

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")


def case_figures(table: Table, *, data: Path | None, shown: int) -> str:
    """The `shown` worst and best cases of a table, or the reason why one is not drawn.

    Args:
        table: an evaluation.
        data: see `report`.
        shown: see `report`.
    """
    rows = ranked(table)
    worst = rows[: min(shown, (len(rows) + 1) // 2)]
    best = [row for row in rows[::-1][:shown] if row not in worst]
    named = [("worst", row) for row in worst] + [("best", row) for row in best]
    if not named:
        return '<p class="note">No case has a Dice coefficient, so none is drawn.</p>' if shown else ""
    if table.record is None:
        return '<p class="note">No record of the evaluation tells where the scans are, so none is drawn.</p>'
    return "".join(_figure(rank, row, table, record=table.record, data=data) for rank, row in named)


def _figure(rank: str, row: Mapping[str, str], table: Table, *, record: Record, data: Path | None) -> str:
    heading = f"{rank}: {row['case']}"
    try:
        drawn = case_figure(_case(row, table, record=record, data=data))
    except Exception as error:  # readers have errors of their own for damaged files
        return f'<p class="note">{escape(heading)} is not drawn: {escape(str(error))}</p>'
    scores = " · ".join(
        f"{name} {fixed(float(row[name]), 1)}" for name in table.scores if name.startswith("dice") and row[name]
    )
    return (
        f'<figure class="case"><figcaption><b>{escape(heading)}</b>'
        f' <span class="note">{escape(scores)}</span></figcaption>'
        f'<img alt="{escape(heading)}: scan, reference and prediction" '
        f'src="data:image/png;base64,{base64.b64encode(drawn).decode()}"></figure>'
    )


def _case(row: Mapping[str, str], table: Table, *, record: Record, data: Path | None) -> Case:
    """The files of the case in a row.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: the record does not know the case, or it has more than one prediction.
    """
    entry = next((case for case in record.content.get("cases", []) if str(case.get("case")) == row["case"]), None)
    if entry is None or not {"image", "label"} <= entry.keys():
        raise ValueError(f"{record.path.name} does not tell its image and label")
    image, label = (_now(_first(entry[key]), record, data) for key in ("image", "label"))
    predictions = _predictions(table.path.parent / "predictions", image=image, case=row["case"])
    return Case(row["case"], image, label, {"prediction": predictions})


def _first(value: Any) -> str:
    """The path in an entry, which may hold one for each sequence of a scan."""
    while not isinstance(value, str):
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return str(value)


def _now(path: str, record: Record, data: Path | None) -> Path:
    """Where a file of the data lies now."""
    absolute = Path(record.content["directory"], path)
    if data is not None:
        before = Path(os.path.normpath(Path(record.content["directory"], record.place("dataset_dir"))))
        normal = Path(os.path.normpath(absolute))
        if not normal.is_relative_to(before):
            raise FileNotFoundError(f"{absolute} was not below {before}, so --data does not tell where it lies now")
        absolute = data / normal.relative_to(before)
    if not absolute.exists():
        raise FileNotFoundError(f"there is no {absolute} (any more): --data tells where the scans lie now")
    return absolute


def _predictions(folder: Path, *, image: Path, case: str) -> Path:
    """The mask of a case: named after the scan or the case, with one more word, in folders like those of the scan."""
    names = {_stem(image), case.rpartition("/")[2]}
    found = [path for path in _volumes(folder) if _stem(path).rpartition("_")[0] in names]
    best = max((_shared(path, image) for path in found), default=0)
    chosen = [path for path in found if _shared(path, image) == best]
    if len(chosen) != 1:
        raise ValueError(f"there are {len(chosen)} masks of it in {folder}, not one")
    return chosen[0]


def _volumes(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name.endswith(VOLUMES) and not _is_map(name))


def _is_map(name: str) -> bool:
    """Whether a file holds uncertainty or probabilities."""
    return "_unc_" in name or "_probabilities." in name


def _shared(one: Path, other: Path) -> int:
    """How many folders two files have in common, counted from the file upwards."""
    pairs = list(zip(one.parts[-2::-1], other.parts[-2::-1], strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(ending) for ending in VOLUMES if path.name.endswith(ending)), path.stem)
