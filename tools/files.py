"""Files, written so that a reader sees the old one or the new one, never half of one; errors name them."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["PARTIAL", "read_json", "read_table", "replacing"]

PARTIAL = ".partial-*"  # names of what a killed process leaves
LONGEST_NAME = 200


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place when the block ends without an error.

    It has the ending of `path`. Missing parent folders are created.

    Raises:
        OSError: when no file can be there, or the content does not reach the disk; `path` is as it was, and nothing is
            left beside it.
    """
    if path.exists() and not path.is_file():  # a device, say, which a file would replace
        raise FileExistsError(errno.EEXIST, "something that is no file is there", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{uuid4().hex[:12]}-{path.name[-LONGEST_NAME:]}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
