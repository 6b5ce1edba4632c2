"""What lies in a folder of results: records of runs, curves of trainings, tables of cases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tools.files import read_json, read_table

Curves = dict[str, dict[int, float]]
RECORDS = "run_*_[0-9]*_[0-9]*.json"
TABLES = ("metrics.csv", "report.csv")
SHAPES = {"config": dict, "bundle": dict, "paths": dict, "versions": dict, "cases": list, "directory": str}
KINDS = ("evaluating", "inference", "training")  # the config of an evaluation has the ids of the training, too


class Point(NamedTuple):
    """A value of a curve, when it was written, and by which process."""

    time: float
    tag: str
    step: int
    value: float
    process: int


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

    def place(self, name: str) -> str:
        """The `dataset_dir`, `state_file` or `weights` of the run; empty if it has none."""
        return str(self.content.get("paths", {}).get(name, ""))

    @property
    def weights(self) -> str:
        """Name of the file of weights that the run makes or uses, without its ending; empty if there is none."""
        return Path(self.place("weights")).stem

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
    records = sorted((_record(path) for path in _files(folder, RECORDS)), key=lambda record: record.started)
    places = sorted({path.parent for path in _files(folder, "events.out.tfevents.*")})
    trainings = [training for place in places for training in read_trainings(place, records)]
    tables = _tables(folder, records)
    if not (records or trainings or tables):
        raise ValueError(f"{folder}: no run has left anything here: no run_*.json, no event files, no {TABLES[0]}")
    return Found(folder, records, trainings, tables)


def _tables(folder: Path, records: Sequence[Record]) -> list[Table]:
    """The tables without copies, such as a demo makes of its own."""
    tables = [table for name in TABLES for path in _files(folder, name) if (table := _table(path, records))]
    recorded = [table.rows for table in tables if table.record]
    return [table for table in tables if table.record or table.rows not in recorded]


def read_trainings(place: Path, records: Sequence[Record]) -> list[Training]:
    """The trainings whose event files lie in `place`.

    A value belongs to the last training that the process which wrote it had started then. A training that starts again
    at the first epoch is another one. One that goes on after an interruption is the same; an epoch that it logs again
    is replaced.
    """
    here = [record for record in records if record.path.parent == place and record.kind == "training"]
    found: list[Training] = []
    latest: dict[str, Training] = {}
    for point in sorted(_points(place)):
        record = _writer(point, here)
        key = record.place("state_file") if record else ""
        training = latest.get(key)
        if training is None or (point.step == 1 and point.step in training.curves.get(point.tag, {})):
            training = latest[key] = _another_training(record.title if record else "training", found)
            found.append(training)
        training.curves.setdefault(point.tag, {})[point.step] = point.value
    return found


def _another_training(title: str, found: Sequence[Training]) -> Training:
    again = sum(other.title.partition(" (")[0] == title for other in found)
    return Training(f"{title} ({again + 1})" if again else title)


def _writer(point: Point, records: Sequence[Record]) -> Record | None:
    """The latest of the trainings that had started when the point was written, by the same process if that is known."""
    started = [record for record in records if record.started.timestamp() <= point.time]
    own = [record for record in started if record.content.get("process") == point.process]
    return next(reversed(own or started), None)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder`, in no folder of MLflow's copies."""
    found = (path for path in folder.rglob(pattern) if "mlruns" not in path.relative_to(folder).parts)
    return sorted(path for path in found if path.is_file())


def _record(path: Path) -> Record:
    try:
        content = read_json(path)
        for name, kind in SHAPES.items():
            if not isinstance(content.get(name, kind()), kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        record = Record(path, content)
        _ = record.config, record.kind, record.title, int(content.get("processes") or 1)
        if record.started.tzinfo is None:
            raise ValueError("the time when it started has no zone")
        if not all(isinstance(case, dict) for case in content.get("cases", [])):
            raise TypeError("a case is no dict")
        float(content.get("seconds") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: no record of a run ({error!r})") from error
    return record


def _table(path: Path, records: Sequence[Record]) -> Table | None:
    """The table with the latest record of an evaluation or inference beside it; `None` if it has no rows."""
    rows = read_table(path, columns=("case",) if path.stat().st_size else ())
    kind = "evaluating" if path.name == TABLES[0] else "inference"
    beside = [record for record in records if record.path.parent == path.parent and record.kind == kind]
    return Table(path, rows, beside[-1] if beside else None) if rows else None


def _points(place: Path) -> Iterator[Point]:
    """All scalars in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    for path in sorted(place.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        written_by = re.search(r"\.(\d+)\.\d+$", path.name)  # events.out.tfevents.<time>.<host>.<process>.<number>
        process = int(written_by[1]) if written_by else -1
        for tag in events.Tags()["scalars"]:
            yield from (Point(event.wall_time, tag, event.step, event.value, process) for event in events.Scalars(tag))


def _numeric(values: Sequence[str]) -> bool:
    """Whether all values are numbers or empty, and one is a number."""
    try:
        return bool([float(value) for value in values if value])
    except ValueError:
        return False
