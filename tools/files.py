"""JSON and CSV files that people write; errors name them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

__all__ = ["read_json", "read_table"]


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file in UTF-8; the mark that some editors put before it is no part of it.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON in UTF-8, {error}") from error


def read_table(path: Path, *, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Returns the rows of a CSV file in UTF-8 by their columns.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, lacks one of `columns`, or rows have more or fewer values than it has columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, named = list(table), table.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is no CSV file in UTF-8, {error}") from error
    if missing := [name for name in columns if name not in named]:
        raise ValueError(f"{path}: has no column {missing[0]}, it has {', '.join(named)}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} has not as many values as there are columns")
    return rows
