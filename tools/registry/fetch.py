"""A download that ends with a bundle that was checked, or with nothing."""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tools.arguments import require_text
from tools.registry.archive import content_problems, unpack
from tools.registry.index import Release, download, read_index

logger = logging.getLogger(__name__)


def fetch(bundle: str, *, registry: str, output: str, version: str | None = None) -> Path:
    """Download BUNDLE from the registry REGISTRY into the folder OUTPUT.

    Unlike `monai.bundle.download` it compares the SHA-256, looks into the zip before it unpacks, reads the weights with
    weights_only=True, and shows the bundle only when all is well: whatever fails, OUTPUT stays as it was. No code
    of the bundle runs.

    Args:
        bundle: name of the bundle.
        registry: folder or address that holds model_info.json, for example the address of a GitHub release's files.
        output: folder for bundles, `bundle_dir` in MONAI; the bundle goes to OUTPUT/BUNDLE.
        version: Default: the newest.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: the registry has no such bundle or version, another version or content is there already, or what
            came is truncated, altered, unsafe or incomplete.
    """
    require_text(bundle=bundle, registry=registry, output=output, version=version)
    release = _release(registry, bundle, version)
    target = Path(output).resolve() / bundle
    if target.exists() and (present := _version(target)) != release.version:
        raise ValueError(f"{target}: there already, in version {present}; remove it to get {release.version}")
    with _made(target.parent), _scratch(target.parent, bundle) as temporary:
        download(registry, release, target=Path(temporary, release.zip))
        folder = unpack(Path(temporary, release.zip), release, into=Path(temporary, "unpacked"))
        if problems := content_problems(folder, release):
            raise ValueError("\n  ".join([f"{release.zip}: rejected", *problems]))
        if target.exists():
            if other := _differences(folder, target):
                raise ValueError(
                    f"{target}: there already, with another {', '.join(other)}; remove it to get the release"
                )
            logger.info("%s: version %s is there already", target, release.version)
            return target
        folder.rename(target)
    logger.info("%s: version %s", target, release.version)
    return target


def _release(source: str, name: str, version: str | None) -> Release:
    index = read_index(source)
    releases = {release.version: release for release in index if release.name == name}
    if not releases:
        names = sorted({release.name for release in index})
        raise ValueError(f"{source}: no bundle {name}, there are {', '.join(names)}")
    chosen = max(releases) if version is None else str(version)
    if chosen not in releases:
        raise ValueError(f"{source}: no version {chosen} of {name}, there are {', '.join(sorted(releases))}")
    return releases[chosen]


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder for the block; if the block ends with an error, what was made is removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    """Makes a folder in `folder` for the block, locked; removes those of calls that were killed, which nobody holds."""
    prefix = f".{name}.fetch-"
    for left in folder.glob(f"{prefix}*"):
        with suppress(Timeout, OSError), FileLock(left / "lock", timeout=0):
            shutil.rmtree(left)
    made = tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True)
    with made, FileLock(Path(made.name, "lock"), timeout=0):
        yield Path(made.name)


def _differences(release: Path, present: Path) -> list[str]:
    """Returns the files of an unpacked release that a folder lacks or has with other content."""
    files = sorted(path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(release, present, files, shallow=False)
    return sorted([*mismatch, *errors])


def _version(folder: Path) -> str:
    """Returns the version of a bundle on disk, or what is there instead."""
    try:
        return str(json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown (no configs/metadata.json that says it)"
