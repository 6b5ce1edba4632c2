"""Files that are there complete or not at all, whenever the process dies and whoever else writes."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["PARTIAL", "atomic_write", "newer", "write_table", "write_text"]

PARTIAL = ".partial-*"  # names of what a killed process leaves
LONGEST_NAME = 200


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a new path beside `path`; the file written there takes its place once the block ends without error.

    The new path has the ending of `path`, by which libraries choose a format. Its folder is made if need be.

    Raises:
        OSError: when no file can be there, or the content does not reach the disk; it names `path`, which is as it was,
            and nothing is left beside it.
    """
    target = Path(path)
    partial = target.with_name(f".partial-{uuid4().hex[:12]}-{target.name[-LONGEST_NAME:]}")
    try:
        if target.exists() and not target.is_file():  # a device, say, which a file would replace
            raise FileExistsError(errno.EEXIST, "something that is no file is there")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        if error.filename not in (None, str(partial), partial, str(target.parent)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def newer(file: str | Path, result: Path) -> bool:
    """Returns whether a file, if it is there, was replaced, written to or touched after a result was written."""
    return Path(file).exists() and Path(file).stat().st_ctime_ns > result.stat().st_mtime_ns


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV.

    Args:
        path: the file.
        rows: values by column; the columns are those of all rows, in the order in which they first occur. NaN and what
            a row lacks are empty fields.
    """
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    table = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
