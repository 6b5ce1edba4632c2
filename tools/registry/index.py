"""Reading a registry, a folder or an address: its `model_info.json`, its checksums, its zips."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tools.registry.transfer import blocks
from tools.shared.files import atomic_write

__all__ = ["DEMO_VERSION", "INDEX", "Release", "checksum", "digest", "download", "is_address", "read_index"]

INDEX = "model_info.json"
DEMO_VERSION = "0.0.0"  # of a demo's bundle: it is no release
LARGEST_ZIP = 2**30  # bytes; no index says how large a zip is
LARGEST_TEXT = 2**24
_STEM = re.compile(r"([A-Za-z]\w*)_v(\d\.\d\.\d)", re.ASCII)


class Release(NamedTuple):
    """One row of `model_info.json`."""

    name: str
    version: str
    sha1: str
    source: str

    @property
    def stem(self) -> str:
        """Name of the zip without its ending."""
        return f"{self.name}_v{self.version}"

    @property
    def zip(self) -> str:
        """Name of the zip."""
        return f"{self.stem}.zip"

    @property
    def sums(self) -> str:
        """Name of the file with the zip's SHA-256."""
        return f"{self.zip}.sha256"

    @property
    def notes(self) -> str:
        """Name of the release notes."""
        return f"{self.stem}.md"


def is_address(source: str) -> bool:
    """Whether `source` is a URL and not a folder."""
    return re.match(r"(https?|file)://", source) is not None


def read_index(source: str) -> list[Release]:
    """Returns the releases that the `model_info.json` of a registry names, sorted.

    Raises:
        ValueError: if there is none or MONAI could not read it; every bad row is named.
    """
    place = _address(source, INDEX)
    try:
        content = json.loads(_read(place))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON, {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{place}: must be an object with a row for every release")
    problems = [f"  {problem}" for stem, row in content.items() for problem in _row_problems(stem, row)]
    if len({stem.casefold() for stem in content}) < len(content):
        problems.append("  two rows differ in case alone")
    if problems:
        raise ValueError("\n".join([f"{place}: rows that cannot be used", *problems]))
    releases = []
    for stem, row in content.items():
        name, version = stem.split("_v")
        releases.append(Release(name, version, row["checksum"], row["source"]))
    return sorted(releases)


def checksum(source: str, release: Release) -> str:
    """Returns the SHA-256 that a registry gives for the zip of a release.

    Raises:
        ValueError: if there is none, or it is for another file.
    """
    place = _address(source, release.sums)
    words = _read(place).split()
    if len(words) != 2 or not re.fullmatch(r"[0-9a-f]{64}", words[0]) or words[1] != release.zip:
        raise ValueError(f"{place}: must hold one line, a SHA-256 and the name {release.zip}")
    return words[0]


def download(source: str, release: Release, *, target: Path) -> None:
    """Copies the zip of a release to the file `target`, if its SHA-256 is the registry's.

    Raises:
        ValueError: if it cannot be read, or is another or a truncated one; there is no `target` then.
    """
    expected, place = checksum(source, release), _address(source, release.zip)
    sha256 = hashlib.sha256()
    try:
        with atomic_write(target) as partial:
            with partial.open("wb") as file:
                for block in blocks(place, limit=LARGEST_ZIP, shown=release.zip):
                    file.write(block)
                    sha256.update(block)
            if sha256.hexdigest() != expected:
                raise ValueError(f"{place}: its SHA-256 is not that of {release.sums}, it is damaged or another file")
    except (OSError, HTTPException) as error:
        raise ValueError(f"{place}: cannot be downloaded, {error}") from error


def digest(path: Path, algorithm: str) -> str:
    """Returns the hexadecimal sum of a file; `algorithm` is `sha256` or `sha1`."""
    return hashlib.new(algorithm, path.read_bytes(), usedforsecurity=algorithm != "sha1").hexdigest()


def _row_problems(stem: str, row: object) -> list[str]:
    if not _STEM.fullmatch(stem) or stem.count("_v") != 1:
        return [f"{stem}: must be <name>_v<version>, the version of three digits and no other _v"]
    if not isinstance(row, Mapping) or not all(isinstance(row.get(key), str) for key in ("checksum", "source")):
        return [f"{stem}: needs checksum and source, both text"]
    if not row["source"].endswith(f"/{stem}.zip"):
        return [f"{stem}: its source must end in /{stem}.zip, it is {row['source']}"]
    return []


def _address(source: str, name: str) -> str:
    return f"{source.rstrip('/')}/{name}" if is_address(source) else (Path(source).resolve() / name).as_uri()


def _read(place: str) -> str:
    try:
        return b"".join(blocks(place, limit=LARGEST_TEXT)).decode("utf-8-sig")
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: cannot be read, {error}") from error
