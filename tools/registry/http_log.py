"""Every request that a client makes is shown; in a dry run those that would change something are not sent.

The clients of GitHub and of the Hugging Face hub run as they are, on connections that show what passes. A dry run
answers a changing request here, so that the client goes on to the next one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["File", "HttpLog", "readable"]

READS = {"GET", "HEAD"}


class File(NamedTuple):
    """A file that a request carries, and its size in bytes."""

    name: str
    size: int


class HttpLog(NamedTuple):
    """Shows requests on standard output."""

    dry_run: bool

    def sends(self, method: str, address: str, *, files: Iterable[File] = ()) -> bool:
        """Shows a request and the files that it carries; returns whether it is to be sent."""
        sent = method in READS or not self.dry_run
        sys.stdout.write(f"{method:<6} {address}{'' if sent else '  (not sent)'}\n")
        sys.stdout.writelines(f"         {file.name}  {file.size:,} bytes\n" for file in files)
        return sent


def readable(body: object) -> dict[str, object]:
    """Returns the content of a JSON body, nothing of any other."""
    try:
        content = json.loads(body) if isinstance(body, str | bytes) else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
