"""The JSON behind a figure: what was run, with what, on which cases, and what came out."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from tools import BUNDLES, REPO
from tools.benchmark.report import environment
from tools.files import read_json, read_table
from tools.shared.files import write_text

logger = logging.getLogger(__name__)

NAMES = ("case", "patient", "frame", "set")


def results(
    bundle: str,
    metrics: str,
    *,
    name: str,
    commands: list[str],
    split: str | None = None,
    seed: int | None = None,
    note: str = "",
) -> Path:
    """Write `bundles/BUNDLE/docs/results_NAME.json` from the table METRICS of an evaluation.

    Args:
        bundle: name of a bundle.
        metrics: CSV with one row per case that `evaluate.yaml` wrote; its summary lies beside it.
        name: what tells this result from others, for example `crops48_reduced`.
        commands: the commands that led to the table, in order, as typed from the repository's root.
        split: split file, as given to the commands.
        seed: seed of the training.
        note: what a reader must know, for example what the data leak.

    Raises:
        FileNotFoundError: when METRICS, its summary or the split file does not exist.
        ValueError: when one of them is damaged, or there is no such bundle.
    """
    if bundle not in {folder.name for folder in BUNDLES}:
        raise ValueError(
            f"{bundle}: no bundle of this collection, it has {', '.join(folder.name for folder in BUNDLES)}"
        )
    table = Path(metrics)
    summary = table.with_name(f"{table.stem}_summary.csv")
    record: dict[str, Any] = {
        "commands": commands,
        "note": note,
        "seed": seed,
        "split": None if split is None else read_json(Path(split)),
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "summary": _by_score(read_table(summary, columns=("score",))),
        "cases": [_numbers(row) for row in read_table(table)],
    }
    path = REPO / "bundles" / bundle / "docs" / f"results_{name}.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    logger.info("%s: %d cases", path, len(record["cases"]))
    return path


def _by_score(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Summaries by the name of the score; in a table with a column `set`, these by the name of the test set."""
    found: dict[str, Any] = {}
    for row in rows:
        place = found.setdefault(row.pop("set"), {}) if "set" in row else found
        score = row.pop("score")
        place[score] = _numbers(row)
    return found


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """Turns finite numbers into such, rounded to six significant digits; names stay text, also where they are digits.

    JSON has no infinity and no NaN: they stay text too.
    """

    def convert(text: str) -> Any:
        try:
            value = float(f"{float(text):.6g}")
        except ValueError:
            return text
        return value if math.isfinite(value) else text

    return {key: text if key in NAMES else convert(text) for key, text in row.items()}
