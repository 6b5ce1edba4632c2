"""Locks on the files that a training writes: two at once would write weights and a state of both."""

from __future__ import annotations

import atexit
import contextlib
import glob
import logging
import os
import platform
import threading
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import ignite.distributed as idist

from .validation import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["hold", "release", "release_all"]

logger = logging.getLogger(__name__)

_held: dict[Path, tuple[int | None, threading.Thread]] = {}
_made: set[Path] = set()  # folders of locks that were not there before


def hold(paths: Iterable[str | Path]) -> None:
    """Locks files for this process, or, where several train together, for all of them, until `release` or its end.

    The kernel gives the lock up when the process dies, however it dies. What an earlier process left of files that it
    could not finish is removed. Where the file system has no locks, a warning says so.

    Raises:
        InputError: when another process, or another thread of this one, trains into one of the files, or they cannot be
            written; every process raises it.
    """
    places = [Path(path).absolute() for path in paths]
    problem = _rejection(places) if idist.get_rank() == 0 else ""
    if idist.get_world_size() > 1:
        problem = next((text for (text,) in idist.all_gather((problem,)) if text), "")
    if problem:
        file, _, rule = problem.partition("\n")
        raise InputError([("", file, rule)])


def release(paths: Iterable[str | Path]) -> None:
    """Gives up the locks of this process on some files."""
    for path in paths:
        place = _place(Path(path))
        descriptor, _ = _held.pop(place, (None, None))
        if descriptor is not None:
            with contextlib.suppress(OSError):
                _lock_file(place).unlink()
            os.close(descriptor)
        if place.parent in _made:
            with contextlib.suppress(OSError):  # something was written there
                place.parent.rmdir()


@atexit.register
def release_all() -> None:
    """Gives up all locks of this process."""
    release(list(_held))


def _place(path: Path) -> Path:
    return path.absolute().parent.resolve() / path.name


def _lock_file(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _rejection(paths: Iterable[Path]) -> str:
    """Locks files; returns a file and a rule where that is not possible."""
    taken: list[Path] = []
    for path in paths:
        place = _place(path)
        try:
            if path.exists() and not path.is_file():
                raise FileExistsError(None, "something that is no file is there")
            if _take(place):
                taken.append(place)
        except OSError as error:
            release(taken)
            is_busy = isinstance(error, BlockingIOError)
            return f"{path}\n{error.strerror if is_busy else f'cannot be written ({error.strerror})'}"
    for place in taken:
        _remove_leftovers(place)
    return ""


def _take(place: Path) -> bool:
    """Locks one file; returns whether it was not held already.

    Raises:
        BlockingIOError: when somebody else holds it.
    """
    if place in _held:
        descriptor, owner = _held[place]
        if owner is not threading.current_thread() and owner.is_alive():
            raise BlockingIOError(None, f"another training in this process writes it, in thread {owner.name}")
        _held[place] = descriptor, threading.current_thread()
        return False
    if not place.parent.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        _made.add(place.parent)
    _held[place] = _locked(_lock_file(place)), threading.current_thread()
    return True


def _locked(file: Path) -> int | None:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is None:
                raise NotImplementedError
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            who = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            rule = f"another training writes it: {who}; wait for it, or give this run another ckpt_dir"
            raise BlockingIOError(None, rule) from None
        except (OSError, NotImplementedError):
            os.close(descriptor)
            file.unlink(missing_ok=True)
            logger.warning("%s: there are no locks here; see to it that no other training writes there", file.parent)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):  # else whoever had it has just removed it
                text = f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M:%S}"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{text}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def _remove_leftovers(place: Path) -> None:
    """Removes what `files.atomic_write` could not finish of a file, and of the copies that are kept of it."""
    name, kept = glob.escape(place.name), f"{glob.escape(place.stem)}*_previous.pt"
    for pattern in (f".partial-????????????-{name}", f".partial-????????????-{kept}", f"{name}.partial"):
        for path in place.parent.glob(pattern):
            logger.warning("Removed %s, which a run that was killed did not finish", path)
            path.unlink(missing_ok=True)
