"""Reproducible training/validation splits, stored as a file."""

import json
import logging
from pathlib import Path

import numpy as np

from tools.files import replacing

logger = logging.getLogger(__name__)


def split(data: str, output: str, *, validation: float | int = 0.2, seed: int = 123, count: int | None = None) -> Path:
    """Divide the cases of the folder DATA into training and validation and write the split to the JSON file OUTPUT.

    A case is a sub-folder; in a folder without sub-folders it is a file, named without its ending. The sorted cases are
    shuffled with the seed, so the split depends on their names alone. Scans of one patient belong in one folder.

    Args:
        data: data folder.
        output: JSON file to write: {"seed": 123, "training": [ids], "validation": [ids]}, ids sorted.
        validation: share of the cases between 0 and 1, or their number (1 or more).
        seed: seed of the shuffle.
        count: use this many cases, drawn with the same seed. Default: all.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: DATA is not a folder or holds no case.
        ValueError: COUNT exceeds the cases there are, or a side of the split would be empty.
    """
    cases = find_cases(Path(data))
    total = len(cases) if count is None else count
    if total not in range(1, len(cases) + 1):
        raise ValueError(f"{data}: {total} cases asked for, the folder holds {len(cases)}")
    held_out = round(validation * total) if 0 < validation < 1 else validation
    if held_out not in range(1, total):
        raise ValueError(
            f"{data}: validation={validation} of {total} cases: take a share between 0 and 1 or a whole number, "
            "so that each side gets at least one case"
        )
    held_out = int(held_out)
    drawn = np.random.default_rng(seed).permutation(len(cases))[:total]
    shuffled = [cases[i] for i in drawn]
    content = {"seed": seed, "training": sorted(shuffled[held_out:]), "validation": sorted(shuffled[:held_out])}

    path = Path(output)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
    logger.info("%s: %d training and %d validation cases", path, total - held_out, held_out)
    return path


def find_cases(folder: Path) -> list[str]:
    """Sorted names of the cases in `folder`: its sub-folders or, where it has none, its files without their endings.

    Hidden entries do not count.

    Raises:
        FileNotFoundError: `folder` is not a folder or holds no case.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    names = {p.name for p in entries if p.is_dir()} or {p.name.removesuffix(".gz").rsplit(".", 1)[0] for p in entries}
    if not names:
        raise FileNotFoundError(f"{folder} holds no case")
    return sorted(names)
