"""The data of a demo: phantoms or the user's scans, and which of them train, stay unlabelled or are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.data.phantoms import phantoms
from tools.data.split import case_path, find_cases, find_patients, split
from tools.files import read_json
from tools.shared.files import write_text

HELD_OUT = 0.2

Recipe = Mapping[str, Any]


def fingerprint(folder: Path) -> str:
    """SHA-256 over the configs and the Python files of the bundle in `folder`."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("configs/*"), *folder.glob("*/**/*.py")]):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def prepare_data(bundle: str, recipe: Recipe, *, data: str | None, output: Path) -> dict[str, str]:
    """Makes phantoms, or divides the user's scans, and writes the split files.

    Args:
        bundle: name of the bundle.
        recipe: its recipe.
        data: folder of labelled scans, `None` for phantoms.
        output: folder for what is made.

    Returns:
        `data`, `split`, `held_out`, `held_out_split` and `output`, the places that recipes refer to; and `unlabelled`,
        a folder of links to those training cases whose labels the recipe wants to be unknown.
    """
    if data is None:
        sizes = recipe["phantoms"]
        train = phantoms(bundle, str(output / "phantoms/training"), **sizes["training"])
        held_out = phantoms(bundle, str(output / "phantoms/held_out"), **sizes["held_out"])
        for name, options in sizes.get("test_sets", {}).items():
            phantoms(bundle, str(output / "phantoms" / name), **options)
        split_file = split(str(train), str(output / "split.json"), validation=sizes["validation"])
    else:
        train, held_out = Path(data), output / "held_out"
        count = max(1, round(HELD_OUT * len(find_patients(train))))  # patients
        split_file = split(data, str(output / "split.json"), validation=count)
        link_cases(train, read_json(split_file)["validation"], target=held_out)
    hidden = output / "unlabelled"
    if share := recipe.get("unlabelled"):
        _hide_labels(split_file, share, source=train, target=hidden)
    held_out_split = output / "held_out.json"
    write_text(held_out_split, json.dumps({"training": [], "validation": find_cases(held_out)}, indent=2) + "\n")
    places = {
        "data": train,
        "split": split_file,
        "held_out": held_out,
        "held_out_split": held_out_split,
        "output": output,
    }
    return {name: str(path) for name, path in (places | {"unlabelled": hidden}).items()}


def _hide_labels(split_file: Path, share: float, *, source: Path, target: Path) -> None:
    """Takes a share of the training cases, at least one and not all, out of a split; `target` gets links to them."""
    listed = read_json(split_file)
    names = listed["training"]
    kept = min(max(1, round((1 - share) * len(names))), len(names) - 1)
    link_cases(source, names[kept:], target=target)
    write_text(split_file, json.dumps(listed | {"training": names[:kept]}, indent=2) + "\n")


def link_cases(source: Path, cases: Iterable[str], *, target: Path) -> None:
    """Makes `target` a folder of links to the folders or files of `cases` in `source`, and to nothing else."""
    target.mkdir(parents=True, exist_ok=True)
    for link in target.iterdir():
        if link.is_symlink():
            link.unlink()
    for case in cases:
        path = case_path(source, case)
        (target / path.name).symlink_to(path.resolve())
