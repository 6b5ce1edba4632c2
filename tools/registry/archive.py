"""What may be in a release zip and what must be: checked without running anything from it."""

from __future__ import annotations

import json
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tools.registry.checkpoints import read_checkpoint, state_dict, unusable
from tools.registry.index import Release
from tools.registry.zip_limits import collisions, growing

__all__ = ["content_problems", "unpack"]

REQUIRED = (
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
LARGEST_JSON = 2**24  # bytes
MOST_MEMBERS = 10_000
LONGEST_PATH = 200  # characters: Windows takes 259 with the folder before it
LONGEST_PART = 143  # bytes, which encrypted file systems take
_DEVICE = re.compile(r"CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
_WEIGHTS = {".pt", ".pth", ".ckpt", ".pkl"}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


def unpack(path: Path, release: Release, *, into: Path) -> Path:
    """Unpacks a release zip into the folder `into` and returns the bundle's folder.

    Raises:
        ValueError: if the zip is truncated or damaged, or a member is not a plain, uncompressed file under the folder
            with the bundle's name; nothing has been written then, or, if the damage is inside a member, only to `into`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if problems := list(_member_problems(archive, release.name)):
                raise ValueError("\n".join([f"{release.zip}: rejected", *(f"  {problem}" for problem in problems)]))
            archive.extractall(into)
    except _DAMAGE as error:
        raise ValueError(f"{release.zip}: cannot be unpacked, truncated or damaged, {error}") from error
    return into / release.name


def content_problems(folder: Path, release: Release) -> list[str]:
    """Returns what is wrong with the files of an unpacked release: those missing, its version, weights that are none.

    Weights are read with `weights_only=True`: no code from them runs.
    """
    problems = [f"{name} is missing" for name in REQUIRED if not (folder / name).is_file()]
    if (folder / "configs/metadata.json").is_file():
        problems += _metadata_problems(folder / "configs/metadata.json", release)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS and path.is_file()):
        try:
            found = _unusable_weights(path)
            problems += [f"{path.relative_to(folder)}: {name} is NaN, infinite or complex" for name in found]
        except ValueError as error:
            reason = str(error).removeprefix(f"{path}: ")
            problems.append(f"{path.relative_to(folder)} is no plain state dict: {reason}")
    return problems


def _unusable_weights(path: Path) -> list[str]:
    state = state_dict(read_checkpoint(path))
    whole = {name for name, value in state.items() if not (value.is_floating_point() or value.is_complex())}
    return list(unusable(state, whole=whole))


def _member_problems(archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    entries = archive.infolist()
    if not entries:
        yield "it is empty"
    if len(entries) > MOST_MEMBERS:
        yield f"it has more than {MOST_MEMBERS} members"
    for entry in entries:
        if reason := _problem_of_entry(entry, name):
            yield f"{entry.filename[:LONGEST_PATH]}: {reason}"
    rule = "the files of a release are stored as they are"
    yield from (f"{path}: {reason}, {rule}" for path, reason in growing(archive))
    yield from (f"{path}: {reason}" for path, reason in collisions(archive))


def _problem_of_entry(entry: zipfile.ZipInfo, name: str) -> str | None:
    parts = entry.filename.rstrip("/").split("/")
    if re.match(r"/|[A-Za-z]:", entry.filename) or "\\" in entry.filename:
        return "an absolute path, or one of another system"
    if {"", ".", ".."} & set(parts):
        return "the path leaves its folder"
    if parts[0] != name or (len(parts) == 1 and not entry.is_dir()):
        return f"not in the one folder {name}/"
    if reason := unportable(entry.orig_filename):
        return reason
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or device, not a plain file"
    return "encrypted" if entry.flag_bits & 1 else None


def unportable(path: str) -> str | None:
    """Why a path is not the same file on every system, or none at all; `None` where it is."""
    if len(path) > LONGEST_PATH or any(len(part.encode()) > LONGEST_PART for part in path.split("/")):
        return "the name is too long"
    if not unicodedata.is_normalized("NFC", path):
        return "the name's letters are not composed (Unicode NFC)"
    for part in path.rstrip("/").split("/"):
        if re.search(r'[\0-\x1f\x7f<>:"|?*]|[ .]$', part) or _DEVICE.fullmatch(part.split(".")[0].rstrip()):
            return "Windows has no such name"
    return None


def _metadata_problems(path: Path, release: Release) -> Iterator[str]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"configs/metadata.json is not JSON: {error}"
        return
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if version != release.version:
        yield f"configs/metadata.json says version {version!r}, the zip's name {release.version!r}"
    elif not isinstance(changelog := metadata.get("changelog"), dict) or version not in changelog:
        yield f"configs/metadata.json has no entry {version} in its changelog"
