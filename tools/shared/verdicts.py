"""What was found good is not read again, and of several processes on a machine one reads for all."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import torch

from .files import write_text

__all__ = ["Verdicts", "by_first_process", "torchrun_store"]

MOST = 20_000  # of the newest verdicts are kept
SERIES = re.compile(r"[/\\][\d.+]+(_phase\d+)?$")  # the end of a path, see `dicom.find_series`
_calls = itertools.count()


class Verdicts:
    """Cases that were found good, on disk, by their files (path, size, time of change) and what was asked of them.

    Only good ones are kept. The file may be missing, damaged, not writable, or written by several processes at once:
    then a case is read again. Another version of this package, or of a library that reads, knows none of them.

    Args:
        rules: what is asked of every case, as JSON.
    """

    def __init__(self, rules: Any) -> None:
        self.rules = json.dumps([_version(), rules], sort_keys=True, default=str)
        self.good = set(_read())
        self.new: list[str] = []

    def key(self, case: Mapping[str, Any]) -> str:
        """Returns what a case and its files are now; each entry that is the path of a file is one."""
        files = [_state(value) for value in case.values() if isinstance(value, str | os.PathLike)]
        return _digest(json.dumps([self.rules, case, files], sort_keys=True, default=str))

    def save(self) -> None:
        """Adds those that are new."""
        kept = dict.fromkeys([*_read(), *self.new])
        with suppress(OSError, RuntimeError):
            if self.new:
                write_text(_file(), json.dumps(list(kept)[-MOST:]))


def by_first_process(find: Callable[[], list[Any]], subject: Any) -> list[Any]:
    """Returns what `find` does, which of several processes of `torchrun` on a machine the first calls for all.

    Args:
        find: returns what can be written as JSON.
        subject: what is looked at; a process to which the first one's is another looks for itself.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1 or (store := torchrun_store()) is None:
        return find()
    place = [os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")]
    name, digest = f"checked {place} {next(_calls)}", _digest(json.dumps(subject, default=str))
    if os.environ["LOCAL_RANK"] == "0":
        found = find()
        store.set(name, json.dumps([digest, found]))
        return found
    while not store.check([name]):  # torchrun ends this process if the first one dies
        time.sleep(0.1)
    same, answer = json.loads(store.get(name))
    return list(answer) if same == digest else find()


def torchrun_store() -> Any:
    """Returns the store that `torchrun` keeps for its processes; `None` without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with suppress(RuntimeError):  # gone, as the machine that kept it
        return torch.distributed.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=10)
        )
    return None


def _file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "monai_bundle_checks" / "good.json"


def _read() -> list[str]:
    with suppress(OSError, RuntimeError, ValueError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(found, list) and all(isinstance(entry, str) for entry in found):
            return found
    return []


def _version() -> list[str]:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py")))
    return [hashlib.sha256(sources).hexdigest(), nibabel.__version__, np.__version__, monai.__version__]


def _state(path: str | os.PathLike[str]) -> Sequence[Any]:
    """A file that is replaced, written to or only touched is another one than before; so is a folder with one.

    A path that is none of a file, in a folder that is there, names a series of DICOM in it.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  # any text, not only a path that can be one
    except (OSError, ValueError):
        return _state_of_folder(Path(path).parent) if SERIES.search(str(path)) else []
    if stat.S_ISDIR(found.st_mode):
        return _state_of_folder(Path(path))
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else []


def _state_of_folder(folder: Path) -> list[Any]:
    if not folder.is_absolute():  # the name of a case
        return []
    files = (str(Path(place, name)) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return [[file, *_state(file)] for file in sorted(files)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
