"""What lies in a folder of results: records of runs, curves of trainings, tables of cases."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

Curves = dict[str, dict[int, float]]
TABLES = ("metrics.csv", "report.csv")
KINDS = ("evaluating", "inference", "training")  # the config of an evaluation has the ids of the training, too


class Point(NamedTuple):
    """A value of a curve, and when it was written."""

    time: float
    tag: str
    step: int
    value: float


@dataclass(frozen=True)
class Record:
    """What a run wrote about itself, see `record.py` of the bundles."""

    path: Path
    content: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The config as executed."""
        config: Mapping[str, Any] = self.content["config"]
        return config

    @property
    def kind(self) -> str:
        """What the run did: its id, or what `run` stands for in its config."""
        named = str(self.content["run_id"])
        return named if named != "run" else next((kind for kind in KINDS if kind in self.config), named)

    @property
    def started(self) -> datetime:
        """When it started, with its time zone."""
        return datetime.fromisoformat(self.content["started"])

    @property
    def weights(self) -> str:
        """Name of the file of weights that the run makes or uses, without its ending; empty if there is none."""
        return Path(setting(self.config, "weights")).stem

    @property
    def title(self) -> str:
        """Kind and weights."""
        return f"{self.kind}: {self.weights}" if self.weights else self.kind


@dataclass
class Training:
    """The curves of one training, resumed or not."""

    title: str
    curves: Curves = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A CSV file with one row per case, and the run that wrote it, if it left a record."""

    path: Path
    rows: Sequence[Mapping[str, str]]
    record: Record | None

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(self.rows[0])

    @property
    def scores(self) -> list[str]:
        """Columns that hold nothing but numbers, and at least one."""
        return [name for name in self.columns if name != "case" and _numeric([row[name] for row in self.rows])]


@dataclass(frozen=True)
class Found:
    """Everything in a folder, the earliest first."""

    folder: Path
    records: Sequence[Record]
    trainings: Sequence[Training]
    tables: Sequence[Table]


def read_folder(folder: Path) -> Found:
    """Reads records, event files and tables in `folder` and below.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    records = sorted((_record(path) for path in _files(folder, "run_*.json")), key=lambda record: record.started)
    places = sorted({path.parent for path in _files(folder, "events.out.tfevents.*")})
    trainings = [training for place in places for training in read_trainings(place, records)]
    tables = [table for name in TABLES for path in _files(folder, name) if (table := _table(path, records))]
    recorded = [table.rows for table in tables if table.record]
    tables = [table for table in tables if table.record or table.rows not in recorded]  # a demo copies its table
    if not (records or trainings or tables):
        raise ValueError(f"{folder}: no run has left anything here: no run_*.json, no event files, no {TABLES[0]}")
    return Found(folder, records, trainings, tables)


def read_trainings(place: Path, records: Sequence[Record]) -> list[Training]:
    """The trainings whose event files lie in `place`.

    A value belongs to the last training that had started when it was written. A training that starts again at the first
    epoch is another one. One that goes on after an interruption is the same; an epoch that it logs again is replaced.
    """
    starts = [
        (record.started.timestamp(), record)
        for record in records
        if record.path.parent == place and record.kind == "training"
    ]
    found: list[Training] = []
    latest: dict[str, Training] = {}
    for point in sorted(_points(place)):
        record = next((record for start, record in reversed(starts) if start <= point.time), None)
        key = setting(record.config, "state_file") if record else ""
        training = latest.get(key)
        if training is None or (point.step == 1 and point.step in training.curves.get(point.tag, {})):
            title = record.title if record else "training"
            again = sum(other.title.partition(" (")[0] == title for other in found)
            training = latest[key] = Training(f"{title} ({again + 1})" if again else title)
            found.append(training)
        training.curves.setdefault(point.tag, {})[point.step] = point.value
    return found


def setting(config: Mapping[str, Any], name: str, *, depth: int = 8) -> str:
    """A text of the config, put together from the texts that it refers to.

    Expressions are not run, it could be anybody's code: what they add is left out.
    """
    value = config.get(name)
    if not isinstance(value, str) or depth == 0:
        return ""
    if value.startswith("@"):
        return setting(config, value[1:], depth=depth - 1)
    if not value.startswith("$"):
        return value
    parts = re.findall(r"'([^']*)'|@(\w+)(?![\w:#\[(.])", value)
    return "".join(setting(config, id_, depth=depth - 1) if id_ else text for text, id_ in parts)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder`, in no folder of MLflow's copies."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file() and "mlruns" not in path.parts)


def _record(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = Record(path, content)
        _ = record.kind, record.title, record.started.timestamp()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no record of a run ({error!r})") from error
    return record


def _table(path: Path, records: Sequence[Record]) -> Table | None:
    """The table with the latest record of an evaluation or inference beside it; `None` if it has no rows."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(None in row or None in row.values() or "case" not in row for row in rows):
        raise ValueError(f"{path}: must have a column `case` and as many values in every row as in the first")
    kind = "evaluating" if path.name == TABLES[0] else "inference"
    beside = [record for record in records if record.path.parent == path.parent and record.kind == kind]
    return Table(path, rows, beside[-1] if beside else None) if rows else None


def _points(place: Path) -> Iterator[Point]:
    """All scalars in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    for path in sorted(place.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            yield from (Point(event.wall_time, tag, event.step, event.value) for event in events.Scalars(tag))


def _numeric(values: Sequence[str]) -> bool:
    """Whether all values are numbers or empty, and one is a number."""
    try:
        return bool([float(value) for value in values if value])
    except ValueError:
        return False
