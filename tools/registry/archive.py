"""What may be in a release zip and what must be: checked without running anything from it."""

from __future__ import annotations

import json
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.checkpoints import read_checkpoint, state_dict
from tools.registry.index import Release

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
                raise ValueError("\n".join([f"{release.zip}: refused", *(f"  {problem}" for problem in problems)]))
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
            state_dict(read_checkpoint(path))
        except ValueError as error:
            reason = str(error).removeprefix(f"{path}: ")
            problems.append(f"{path.relative_to(folder)} is no plain state dict: {reason}")
    return problems


def _member_problems(archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    entries = archive.infolist()
    if not entries:
        yield "it is empty"
    for entry in entries:
        parts = entry.filename.rstrip("/").split("/")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if re.match(r"/|[A-Za-z]:", entry.filename) or "\\" in entry.filename:
            yield f"{entry.filename}: an absolute path, or one of another system"
        elif {"", ".", ".."} & set(parts):
            yield f"{entry.filename}: the path leaves its folder"
        elif parts[0] != name or (len(parts) == 1 and not entry.is_dir()):
            yield f"{entry.filename}: not in the one folder {name}/"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{entry.filename}: a link or device, not a plain file"
        elif entry.flag_bits & 1:
            yield f"{entry.filename}: encrypted"
        elif entry.compress_type != zipfile.ZIP_STORED:
            yield f"{entry.filename}: compressed, the files of a release are stored as they are"
    counts = Counter(entry.filename for entry in entries)
    yield from (f"{path}: {count} times" for path, count in counts.items() if count > 1)


def _metadata_problems(path: Path, release: Release) -> Iterator[str]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"configs/metadata.json is not JSON: {error}"
        return
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if version != release.version:
        yield f"configs/metadata.json says version {version!r}, the zip's name {release.version!r}"
    elif not isinstance(changelog := metadata.get("changelog"), dict) or version not in changelog:
        yield f"configs/metadata.json has no entry {version} in its changelog"
