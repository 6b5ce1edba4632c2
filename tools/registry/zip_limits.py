"""Zips of unknown origin: what their directory says of their members, before any of them is read."""

from __future__ import annotations

import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator

__all__ = ["collisions", "growing"]


def growing(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yields name and reason of members that take more bytes outside of the zip than they have in it."""
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            yield member.filename, "compressed"
        elif member.header_offset < end:
            yield member.filename, "overlaps the member before it"
        end = max(end, member.header_offset + member.compress_size)


def collisions(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yields name and reason of members that are one file where case or composition of letters does not count."""
    files = [member.filename.rstrip("/") for member in archive.infolist()]
    keys = [unicodedata.normalize("NFKC", name).casefold() for name in files]
    counts, first = Counter(keys), dict(zip(reversed(keys), reversed(files), strict=True))
    for name, key in zip(files, keys, strict=True):
        if counts[key] > 1 and name != first[key]:
            yield name, f"on some systems the same file as {first[key]}"
    yield from ((name, f"{count} times") for name, count in Counter(files).items() if count > 1)
