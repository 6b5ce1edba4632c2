"""Release archives of the bundles: one zip per version, with the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from tools import REPO
from tools.arguments import require_text
from tools.files import read_json
from tools.registry.checkpoints import read_checkpoint
from tools.registry.pages import FOLDER, add_common_pages
from tools.shared.files import atomic_write, write_text

__all__ = ["bundle_folder", "json_copy", "pack", "release_files"]

logger = logging.getLogger(__name__)

Row = dict[str, dict[str, str]]

EXCLUDED = {"__pycache__", "cache", "eval"}
CONFIGS = ("configs/*.yaml", "configs/*.json", "configs/*.conf")
LAYOUT = ("LICENSE", "large_files.yml", *CONFIGS, "docs/*", f"{FOLDER}/*.md", "*/**/*.py")
_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?)")


def pack(bundle: str, output: str = "dist", *, url: str | None = None) -> Row:
    """Packs a bundle into `<output>/<bundle>_v<version>.zip`, ready for `monai.bundle.download` and `load`.

    The zip holds what git tracks of the bundle, the weights in its `models` folder, a JSON copy of every YAML config,
    because `monai.bundle.load` reads only JSON, and the common pages that its texts link to, in `docs/common`. Of a
    bundle that git does not track, such as a downloaded one, it holds what the layout of a bundle has. Beside it go its
    `.sha256` and its row in `model_info.json`.

    Args:
        bundle: name of the bundle, or path of its folder.
        output: folder to write to; a `model_info.json` in it keeps its other rows.
        url: address of the folder that the zip will be downloaded from; by default `output` itself.

    Returns:
        The row of `model_info.json`: asset name, SHA-1 (as in MONAI's model zoo) and address.

    Raises:
        ValueError: if the folder is no bundle, git tracks a part of it without its metadata, or JSON cannot say what a
            YAML config says.
    """
    folder = bundle_folder(bundle)
    version = _version(folder)
    target = Path(output).resolve() / f"{folder.name}_v{version}.zip"
    with atomic_write(target) as temporary:
        files = release_files(folder)
        _write_zip(temporary, {f"{folder.name}/{name}": content for name, content in files.items()})
    if "models/model.pt" not in files:
        logger.warning("%s: packed without weights, models/model.pt does not exist", folder.name)
    content = target.read_bytes()
    write_text(target.with_name(f"{target.name}.sha256"), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n")
    source = f"{url.rstrip('/')}/{target.name}" if url else target.as_uri()
    checksum = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    row = {target.stem: {"checksum": checksum, "source": source}}
    registry = target.with_name("model_info.json")
    rows = read_json(registry) if registry.is_file() else {}
    write_text(registry, json.dumps(rows | row, indent=2, sort_keys=True) + "\n")
    logger.info("%s: %.1f MB written to %s", folder.name, len(content) / 1e6, target)
    return row


def _version(folder: Path) -> str:
    metadata = read_json(folder / "configs/metadata.json")
    if not isinstance(metadata, dict) or not re.fullmatch(r"[\w.]+", str(metadata.get("version"))):
        raise ValueError(f"{folder / 'configs/metadata.json'}: has no version")
    return str(metadata["version"])


def bundle_folder(bundle: str) -> Path:
    """Returns the folder of a bundle, given its name or the path of its folder.

    Raises:
        ValueError: if the folder is no bundle.
    """
    require_text(bundle=bundle)
    folder = Path(bundle).resolve() if Path(bundle).is_dir() else REPO / "bundles" / bundle
    if not (folder / "configs" / "metadata.json").is_file():
        raise ValueError(f"{bundle}: no bundle, {folder / 'configs' / 'metadata.json'} does not exist")
    return folder


def release_files(folder: Path, *, weights: bool = True) -> dict[str, bytes]:
    """Returns path in the bundle -> content of everything that a release of the bundle in `folder` holds.

    Args:
        folder: the bundle.
        weights: whether those in its `models` folder are among it; otherwise they are not looked at.

    Raises:
        ValueError: as `pack`.
    """
    kept = _released(folder, weights=weights)
    files = {name: (folder / name).read_bytes() for name in kept}
    for name in kept:
        if re.fullmatch(r"configs/.*\.ya?ml", name):
            copy = re.sub(r"\.ya?ml$", ".json", name)
            if copy in files:
                raise ValueError(f"{folder.name}, {name}: {copy} exists as well, only one of them can be the source")
            files[copy] = json_copy(folder / name).encode()
    return add_common_pages(files)


def _released(folder: Path, *, weights: bool) -> list[str]:
    """The paths in the bundle of the files that are there and belong to a release."""
    names = _tracked(folder) or _laid_out(folder)
    if "configs/metadata.json" not in names:
        raise ValueError(f"{folder.name}: git does not track configs/metadata.json, add and commit the bundle first")
    found = (folder / "models").glob("[!.]*.pt") if weights else ()
    names |= {f"models/{path.name}" for path in found if _is_weights(path)}
    return sorted(name for name in names if not any(part in EXCLUDED or part[0] == "." for part in name.split("/")))


def json_copy(config: Path) -> str:
    """Returns the JSON that MONAI reads exactly as it reads the YAML file `config`.

    Raises:
        ValueError: if a key or value has no equal in JSON (numbers as keys, dates, infinity), or if it looks like a
            number and is text in YAML 1.1, as `1e-4` is.
    """
    content = ConfigParser.load_config_file(config)
    if problems := list(_unfaithful(content)):
        raise ValueError("\n  ".join([f"{config}: cannot be written as JSON", *problems]))
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _unfaithful(value: object, where: str = "") -> Iterator[str]:
    """Yields id and reason of every value that JSON cannot hold or that YAML 1.1 takes for text."""
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}#{key}".lstrip("#")
            if not isinstance(key, str):
                yield f"{place}: the key {key!r} is not text, quote it"
            yield from _unfaithful(item, place)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unfaithful(item, f"{where}#{i}".lstrip("#"))
    elif isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        yield f"{where}: {value!r} is text in YAML 1.1, write numbers as in 1.0e-4"
    elif not _is_json(value):
        yield f"{where}: {value!r} does not exist in JSON"


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _tracked(folder: Path) -> set[str]:
    """Returns the paths, relative to `folder`, that git tracks in it; none outside of a checkout."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "."]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return set()
    return set(filter(None, result.stdout.split("\0"))) if result.returncode == 0 else set()


def _laid_out(folder: Path) -> set[str]:
    """Returns the paths that a bundle has by its layout; JSON that stands beside YAML is a copy and made again."""
    found = {path for pattern in LAYOUT for path in folder.glob(pattern) if path.is_file()}
    copies = {path for path in found if path.suffix == ".json" and path.with_suffix(".yaml") in found}
    return {path.relative_to(folder).as_posix() for path in found - copies}


def _is_weights(path: Path) -> bool:
    """Whether the file is a plain state dict: a training state, with optimizer and trainer, is no part of a release.

    Nor are the weights of before a training, which MONAI Label keeps as `*_previous.pt`.
    """
    if path.stem.endswith("_previous"):
        logger.info("%s: left out, the weights before a training", path)
        return False
    state = read_checkpoint(path)
    plain = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not plain:
        logger.info("%s: left out, not a plain state dict", path)
    return plain


def _write_zip(target: Path, files: dict[str, bytes]) -> None:
    """Writes sorted entries with fixed date, system and permissions.

    Nothing is compressed: the bytes of deflate depend on the zlib build, and weights hardly shrink.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
