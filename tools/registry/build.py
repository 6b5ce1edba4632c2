"""Everything a release needs, for all bundles at once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools import BUNDLES
from tools.arguments import names, require_text
from tools.registry.index import read_index
from tools.registry.pack import bundle_folder, pack
from tools.shared.files import write_text

logger = logging.getLogger(__name__)

NOTES = """# {name} {version}

{title}. {description}

{changelog}

Needs MONAI {monai}, PyTorch {torch} and NumPy {numpy}. The code is under the LICENSE in the zip, the weights under the
terms in its docs/data_license.txt. {use}.
"""


def build(
    *,
    output: str = "dist",
    url: str | None = None,
    bundles: str | Sequence[str] | None = None,
) -> Path:
    """Make the registry OUTPUT: of each bundle the zip, its SHA-256 and release notes, and a model_info.json of all.

    The same sources and weights give the same zips on every machine. Rows of other versions in OUTPUT are kept.

    Args:
        output: folder to write to.
        url: address that OUTPUT will be downloaded from. Default: OUTPUT itself, for use on this machine.
        bundles: names, or paths of folders, separated by commas. Default: all of the collection.

    Returns:
        The folder OUTPUT.

    Raises:
        ValueError: a bundle is none, lacks models/model.pt, a version or its entry in the changelog, or cannot be
            packed. All but the last are named before anything is written.
    """
    require_text(output=output, url=url)
    folders = list(BUNDLES) if bundles is None else [bundle_folder(name) for name in names(bundles)]
    problems = [problem for folder in folders for problem in _problems(folder)]
    if problems:
        raise ValueError("\n  ".join(["nothing is built", *problems]))
    for folder in folders:
        (stem,) = pack(str(folder), output, url=url)
        write_text(Path(output, f"{stem}.md"), _notes(folder))
    logger.info("%s: %d releases; next: python -m tools registry verify %s", output, len(read_index(output)), output)
    return Path(output)


def _metadata(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))
    return content


def _problems(folder: Path) -> list[str]:
    problems = []
    if not (folder / "models/model.pt").is_file():
        problems.append(f"{folder.name}: models/model.pt does not exist; train, convert or download it")
    metadata = _metadata(folder)
    version = metadata.get("version")
    if not isinstance(version, str) or not re.fullmatch(r"\d\.\d\.\d", version):
        problems.append(f"{folder.name}: the version in configs/metadata.json must be three digits, it is {version!r}")
    elif version not in (metadata.get("changelog") or {}):
        problems.append(f"{folder.name}: configs/metadata.json has no entry {version} in its changelog")
    return problems


def _notes(folder: Path) -> str:
    metadata = _metadata(folder)
    version = metadata["version"]
    return NOTES.format(
        name=folder.name,
        version=version,
        title=metadata.get("name", folder.name),
        description=metadata.get("description", ""),
        changelog=f"Changes: {metadata['changelog'][version]}.",
        monai=metadata.get("monai_version"),
        torch=metadata.get("pytorch_version"),
        numpy=metadata.get("numpy_version"),
        use=metadata.get("intended_use", "Research only, not for clinical use"),
    )
