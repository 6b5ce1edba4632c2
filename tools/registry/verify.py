"""Checking a registry as a user's client would."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools import REPO
from tools.registry.archive import content_problems, unpack
from tools.registry.index import INDEX, Release, checksum, digest, download, is_address, read_index

SCHEMA = REPO / "tools/check/metadata_schema.json"  # MONAI's rules, kept in the repository: nothing is downloaded
PROBE = Path(__file__).with_name("probe.py")
TIME_LIMIT = 900  # seconds for one bundle's network


def verify(registry: str) -> None:
    """Check every release of the registry REGISTRY, a folder or an address; list all problems.

    Checked are: checksums, the zip's members, the files every bundle has, the metadata against MONAI's schema, weights
    (loaded with weights_only=True, so that they run no code), and, in a process of its own, that `monai.bundle.load`
    builds the network, that the weights fit and that input and output have the shapes of the metadata. The last step
    runs the bundle's code; it is left out if an earlier one found a problem.

    Raises:
        ValueError: REGISTRY has no model_info.json that MONAI could read.
        SystemExit: with status 1 if there is a problem.
    """
    found = problems(registry)
    width = max(map(len, found))
    lines = [f"{stem:<{width}}  {f'{len(reasons)} problems' if reasons else 'good'}" for stem, reasons in found.items()]
    lines += [f"{stem}: {reason}" for stem, reasons in found.items() for reason in reasons]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if any(found.values()):
        raise SystemExit(1)


def problems(registry: str) -> dict[str, list[str]]:
    """Returns the problems of each release of a registry, by `<name>_v<version>`.

    Zips in a folder that its `model_info.json` does not name are listed under the name of that file.
    """
    releases, validator = read_index(registry), _validator()
    found = {}
    for release in tqdm(releases, desc="releases", disable=None):
        try:
            found[release.stem] = _release_problems(registry, release, validator=validator)
        except Exception as error:  # of one release, whose damage nobody foresaw: the others are checked nevertheless
            found[release.stem] = [f"cannot be checked, {type(error).__name__}: {error}"]
    if not is_address(registry):
        extra = sorted({path.name for path in Path(registry).glob("*.zip")} - {release.zip for release in releases})
        found |= {INDEX: [f"has no row for {name}" for name in extra]} if extra else {}
    return found


def _release_problems(registry: str, release: Release, *, validator: Any) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = _zip(registry, release, Path(temporary))
            problems = [] if digest(path, "sha1") == release.sha1 else [f"its SHA-1 is not that of {INDEX}"]
            folder = unpack(path, release, into=Path(temporary, "unpacked"))
        except ValueError as error:
            return [str(error)]
        problems += content_problems(folder, release)
        problems += _schema_problems(folder, validator)
        return problems or _network_problems(folder)


def _zip(registry: str, release: Release, temporary: Path) -> Path:
    """Returns the zip, which has the registry's SHA-256; from an address it is downloaded."""
    if is_address(registry):
        download(registry, release, target=temporary / release.zip)
        return temporary / release.zip
    path = Path(registry, release.zip)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if digest(path, "sha256") != checksum(registry, release):
        raise ValueError(f"{path}: its SHA-256 is not that of {release.sums}, it is damaged or another file")
    return path


def _validator() -> Any:
    """Returns the schema's validator, from an optional dependency."""
    try:
        from jsonschema import Draft201909Validator
    except ImportError as error:
        raise ValueError("the check of metadata needs jsonschema: python -m pip install jsonschema") from error
    return Draft201909Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _schema_problems(folder: Path, validator: Any) -> list[str]:
    """Returns all breaches of the schema; `monai.bundle.verify_metadata` names the first and wants a download."""
    try:
        metadata = json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # named by content_problems
        return []
    return [
        f"configs/metadata.json, {'.'.join(map(str, error.absolute_path)) or 'metadata'}: {error.message}"
        for error in validator.iter_errors(metadata)
    ]


def _network_problems(folder: Path) -> list[str]:
    command = [sys.executable, str(PROBE), str(folder.parent), folder.name]
    try:
        result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return [f"its network was not built and run within {TIME_LIMIT} s"]
    lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
    return [f"its network cannot be used: {lines[-1]}"] if result.returncode else []
