"""Folders of results for the tests of the report, and a reader of its pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tools.data.phantoms import write_volume

START = 1_700_000_000
VOID = ("meta", "link", "img", "input", "path")


def write_events(folder: Path, curves: dict[str, list[tuple[int, float]]], *, time: float = START) -> None:
    """An event file; value number i is written i seconds after `time`."""
    writer = SummaryWriter(str(folder), filename_suffix=f".{time}")
    points = [(step, tag, value) for tag, curve in curves.items() for step, value in curve]
    for i, (step, tag, value) in enumerate(sorted(points)):
        writer.add_scalar(tag, value, step, walltime=time + i)
    writer.close()


def write_record(folder: Path, kind: str, *, time: float = START, **content: Any) -> Path:
    """A record as `record_run` writes it."""
    from datetime import datetime, timezone

    started = datetime.fromtimestamp(time, timezone.utc)
    path = folder / f"run_{kind}_{started:%Y%m%d_%H%M%S}.json"
    known: dict[str, Any] = {"bundle": {"name": "toy", "version": "0.1.0"}, "run_id": kind, "finished": None}
    known |= {"started": started.isoformat(), "seconds": None, "command": "", "directory": str(folder)}
    known |= {"device": "cpu", "processes": 1, "versions": {}, "cases": [], "config": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | content))
    return path


class Page(HTMLParser):
    """What the tests ask of a page.

    Attributes:
        addresses: whatever a browser could fetch.
        points: tag -> titles of the marks on its curve.
        rows: texts of the cells of all table rows, by the class of the table.
        images: sources of all figures.
        text: all text outside of style and script.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.points: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.images: list[str] = []
        self.text = ""
        self.place: list[str] = []
        self.table = self.tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.addresses += [given[name] for name in ("src", "href", "srcset", "action", "data") if name in given]
        self._note(tag, given)
        if tag not in VOID:
            self.place.append(tag)

    def _note(self, tag: str, given: dict[str, str]) -> None:
        if tag == "img":
            self.images.append(given["src"])
        if tag == "g":
            self.tag = given["data-tag"]
            self.points[self.tag] = []
        if tag == "table":
            self.table = given["class"]
        if tag == "tr":
            self.rows.setdefault(self.table, []).append([])
        if tag in ("td", "th"):
            self.rows[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.place.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.place):
            self.text += data
        if self.place[-1:] == ["title"] and "g" in self.place:
            self.points[self.tag].append(data)
        elif {"td", "th"} & set(self.place):
            self.rows[self.table][-1][-1] += data


def write_cases(folder: Path, names: list[str]) -> list[dict[str, str]]:
    """Scans, labels and predictions of cases, boxes on a ramp; returns what a record says of them."""
    grid = np.zeros((40, 36, 30), np.uint8)
    label, mask = grid.copy(), grid.copy()
    label[10:25, 10:25, 8:20] = 1
    mask[12:28, 10:25, 8:18] = 1
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], grid.shape)
    files = {"data/{}/scan.nii.gz": ramp, "data/{}/label.nii.gz": label, "predictions/{}/scan_seg.nii.gz": mask}
    for name in names:
        for pattern, volume in files.items():
            write_volume(folder / pattern.format(name), volume, spacing=(1.5, 1.5, 2.0))
    scans = {name: folder / "data" / name for name in names}
    return [
        {"case": name, "image": str(scan / "scan.nii.gz"), "label": str(scan / "label.nii.gz")}
        for name, scan in scans.items()
    ]
