"""Reading an address with limits of size, of time in all, and of time in which next to nothing arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

__all__ = ["blocks"]

LONGEST = 3600.0  # seconds for one file
WINDOW = 30.0  # seconds in which at least SLOWEST bytes must arrive
SLOWEST = 30_000
_BLOCK = 2**20  # bytes


def blocks(place: str, *, limit: int, shown: str = "") -> Iterator[bytes]:
    """Yields the content of an address, block by block.

    A thread reads: whatever hangs, the name server, a header or the content, does not hang this.

    Args:
        place: the address.
        limit: bytes that it may have.
        shown: name for a progress bar; without it there is none.

    Raises:
        OSError: it cannot be read, is larger than `limit`, has another size than it says, is too slow, or leads from
            https to an address that is none.
    """
    arrived: Queue[Any] = Queue(maxsize=8)
    stop = Event()
    Thread(target=_read, args=(place, arrived, stop), daemon=True).start()
    start = window = time.monotonic()
    total = recent = 0
    try:
        size = _next(arrived)
        if size is not None and size > limit:
            raise OSError(f"it has {size:,} bytes, more than {limit:,}")
        with _bar(shown, size) as bar:
            while block := _next(arrived):
                bar.update(len(block))
                total, recent, now = total + len(block), recent + len(block), time.monotonic()
                if total > limit:
                    raise OSError(f"it has more than {limit:,} bytes")
                if now - start > LONGEST:
                    raise OSError(f"it takes longer than {LONGEST:.0f} s")
                if now - window > WINDOW:
                    if recent < SLOWEST:
                        raise OSError(f"too slow: {recent} bytes in {now - window:.0f} s")
                    window, recent = now, 0
                yield block
        if size is not None and total != size:
            raise OSError(f"it ends after {total:,} of {size:,} bytes")
    finally:
        stop.set()


def _bar(shown: str, size: int | None) -> tqdm[Any]:
    return tqdm(desc=shown, total=size, unit="B", unit_scale=True, leave=False, disable=None if shown else True)


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.lower().startswith(("https://", "http://") if req.type == "http" else "https://"):
            raise URLError(f"it leads to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _next(arrived: Queue[Any]) -> Any:
    try:
        item = arrived.get(timeout=WINDOW)
    except Empty:
        raise OSError(f"nothing arrives for {WINDOW:.0f} s") from None
    if isinstance(item, Exception):
        raise item
    return item


def _read(place: str, arrived: Queue[Any], stop: Event) -> None:
    """Puts size, blocks and an empty block, or an error, into the queue until `stop`."""

    def put(item: Any) -> None:
        while not stop.is_set():
            with suppress(Full):
                arrived.put(item, timeout=1)
                break

    try:
        with build_opener(_Redirects).open(place, timeout=WINDOW) as response:
            declared = response.headers.get("Content-Length") or ""
            put(int(declared) if declared.isdecimal() else None)
            while not stop.is_set() and (block := response.read1(_BLOCK)):
                put(block)
            put(b"")
    except Exception as error:  # for the thread that waits
        put(error)
