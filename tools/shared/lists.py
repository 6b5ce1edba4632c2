"""Reads JSON lists of cases, whatever wrote them."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from .scans import problem_of_name
from .validation import InputError

__all__ = ["SPLITS", "lists_of", "read_json", "read_split_file", "read_text"]

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation", "test")
FOLD = re.compile(r"(.+\.json):(\d{1,3})", re.IGNORECASE)
# Lists in the descriptions of data sets that are no lists of cases.
METADATA = {"labels", "modality", "channel_names", "tensorImageSize", "tensorImageSizes", "authors", "keywords"}


def _content_of(path: Path, kind: str) -> bytes:
    """Returns the content of a file, or raises an `InputError`; `kind` is what it is, for messages."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError([("", str(path), f"{kind} does not exist")]) from None
    except (OSError, ValueError) as error:
        raise InputError([("", str(path), f"{kind} cannot be read ({error})")]) from error


def read_json(path: str | Path, *, kind: str) -> Any:
    """Returns the content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: the file.
        kind: what it is, for messages.

    Raises:
        InputError: when it is missing, unreadable, no JSON, nested too deeply, or holds NaN or a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return dict(pairs)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    content = _content_of(Path(path), kind)
    try:
        return json.loads(content, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise InputError([("", str(path), "is no valid JSON (nested too deeply)")]) from None
    except ValueError as error:
        raise InputError([("", str(path), f"is no valid JSON ({error})")]) from error


def lists_of(
    content: Any, path: str | Path, *, known: Sequence[str], needed: Sequence[str] = (), rule: str
) -> dict[str, list[Any]]:
    """Returns the known lists of a JSON object, empty where there is none.

    Args:
        content: what the file holds; entries that are no lists describe the data, and are passed over.
        path: the file.
        known: names of the lists.
        needed: those that must be there.
        rule: for messages, which lists there may be.

    Raises:
        InputError: when a list is missing, is none, or is unknown; then the nearest known one is named.
    """
    found: Mapping[str, Any] = content if isinstance(content, dict) else {}
    _check_known(found, path, known=known, rule=rule)
    missing = not isinstance(content, dict) or any(name not in found for name in needed)
    if missing or not all(isinstance(found.get(name, []), list) for name in known):
        raise InputError([("", str(path), rule)])
    return {name: found.get(name, []) for name in known}


def _check_known(found: Mapping[str, Any], path: str | Path, *, known: Sequence[str], rule: str) -> None:
    problems = []
    for key in (key for key, each in found.items() if isinstance(each, list) and key not in {*known, *METADATA}):
        nearest = get_close_matches(key.lower(), known, n=1, cutoff=0.3)
        hint = f", is it '{nearest[0]}'?" if nearest else ""
        problems.append(("", str(path), f"{rule}; '{key}' is none of {', '.join(known)}{hint}"))
    if problems:
        raise InputError(problems)


def _fold_of(path: Path) -> tuple[Path, int | None]:
    match = FOLD.fullmatch(path.name)
    return (path.with_name(match[1]), int(match[2])) if match else (path, None)


def _of_fold(content: Any, path: Path, fold: int | None) -> Any:
    """One of nnU-Net's folds as lists of training and validation; anything else as it is."""
    if fold is None and not (isinstance(content, list) and content and isinstance(content[0], dict)):
        return content
    return _checked_fold(content, path, fold or 0)


def _checked_fold(content: Any, path: Path, fold: int) -> dict[str, Any]:
    if not isinstance(content, list) or fold >= len(content):
        count = f"it has {len(content)}" if isinstance(content, list) else "it is no list of folds"
        raise InputError([("", str(path), f"has no fold {fold}, {count}")])
    if not isinstance(content[fold], dict) or not {"train", "val"} <= content[fold].keys():
        raise InputError([("", str(path), f"fold {fold} must hold lists of case names under 'train' and 'val'")])
    logger.info("%s: fold %d of %d, 0 to %d", path, fold, len(content), len(content) - 1)
    return {"training": content[fold]["train"], "validation": content[fold]["val"]}


def read_split_file(path: str | Path) -> dict[str, list[str]]:
    """Reads a JSON file with lists of case names under `training`, `validation` and, if wanted, `test`.

    nnU-Net's `splits_final.json` is read too, a list of folds `{"train": names, "val": names}`: the first, or with
    `splits_final.json:3` the one of that number, from 0 on.

    Raises:
        InputError: as `read_json` and `lists_of`, and when there is no such fold, an entry is no name of a case, or is
            listed twice.
    """
    path, fold = _fold_of(Path(path))
    content = read_json(path, kind="split file")
    content = _of_fold(content, path, fold)
    rule = "must hold lists of case names under 'training' and 'validation', and may under 'test'"
    named = lists_of(content, path, known=SPLITS, needed=SPLITS[:2], rule=rule)
    if rules := [rule for split, names in named.items() for rule in _rules_broken(split, names)]:
        raise InputError(("", str(path), rule) for rule in rules)
    counts = Counter(chain.from_iterable(named.values()))
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise InputError((name, str(path), "is listed twice") for name in twice)
    return named


def _rules_broken(split: str, names: Sequence[Any]) -> Iterator[str]:
    for number, name in enumerate(names, 1):
        if problem := problem_of_name(name):
            yield f"entry {number} of '{split}': {problem}"


def read_text(path: str | Path, *, kind: str) -> str:
    """Returns the content of a text file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: the file.
        kind: what it is, for messages.

    Raises:
        InputError: when it is missing or unreadable.
    """
    content = _content_of(Path(path), kind)
    return content.decode(json.detect_encoding(content), errors="replace")
