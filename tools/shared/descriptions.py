"""What a `dataset.json` says of channels and labels, and what that is for a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .lists import read_json
from .validation import InputError

__all__ = ["CHANNEL", "DESCRIPTION", "channel_names", "channels_beside", "label_values"]

DESCRIPTION = "dataset.json"
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net's files without ending: case and channel
LARGEST = 255  # value of a label map
BACKGROUND: tuple[list[str], ...] = (
    [],
    ["background"],
    ["bg"],
    ["clearlabel"],
)  # what the value 0 is called, if it is listed


def channel_names(
    content: Any, source: Path, *, sequences: Sequence[str] | None, names: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns what the channels of a data set are, in order, as the bundle calls its sequences; none if it is not told.

    Args:
        content: of the description.
        source: the file.
        sequences: that are needed; `None`: there must be one channel, whatever it is.
        names: what else they may be called.

    Raises:
        InputError: when a sequence is missing or there twice, or one channel is wanted and there are several; the
            message lists what there is.
    """
    key = _key_of_channels(content)
    if key is None:
        return []
    told = _numbered(content[key])
    if told is None:
        raise InputError([("", str(source), f"has no list of channels {{'0': name, '1': name}} under '{key}'")])
    if sequences is None and len(told) != 1:
        raise InputError([("", str(source), f"scans must have one channel, these have {len(told)}: {', '.join(told)}")])
    found = _called(told, names)
    if wrong := [name for name in sequences or () if found.count(name) != 1]:
        rule = f"the channels are {', '.join(told)}, and there must be one"
        raise InputError(("", str(source), f"{rule} {name}") for name in wrong)
    return found


def _key_of_channels(content: Any) -> str | None:
    keys = ("channel_names", "modality")
    return next((key for key in keys if isinstance(content, Mapping) and key in content), None)


def _called(told: Sequence[str], names: Mapping[str, Sequence[str]]) -> list[str]:
    known = {_plain(other): name for name, others in names.items() for other in (name, *others)}
    return [known.get(_plain(name), name) for name in told]


def _numbered(listed: Any) -> list[str] | None:
    """The names in `{"0": name, "1": name, ...}` or a list; `None` of anything else."""
    if isinstance(listed, list):
        return [str(name) for name in listed]
    if not isinstance(listed, Mapping) or set(listed) != {str(number) for number in range(len(listed))}:
        return None
    return [str(listed[str(number)]) for number in range(len(listed))]


def _plain(name: str) -> str:
    """A name without what spelling may differ by."""
    text = re.sub(r"[^a-z0-9]+", "", name.casefold())
    return text.replace("oedema", "edema").replace("tumour", "tumor")


def channels_beside(image: Path, names: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Returns the channels of the data set in whose `imagesTr` or `imagesTs` an image lies, `None` of any other.

    Args:
        image: the file.
        names: see `channel_names`.

    Raises:
        InputError: when the description is damaged.
    """
    source = image.parent.parent / DESCRIPTION
    if image.parent.name not in ("imagesTr", "imagesTs") or not source.is_file():
        return None
    return channel_names(_read(source, source.stat().st_mtime_ns), source, sequences=(), names=names) or None


@lru_cache(maxsize=8)
def _read(source: Path, _: int) -> Any:
    return read_json(source, kind="description of the data set")


def label_values(
    content: Any, source: Path, *, classes: Mapping[str, int], synonyms: Mapping[str, Sequence[str]]
) -> list[int] | None:
    """Returns the bundle's value for each value of label maps, by the names that a description gives them.

    Args:
        content: of the description: `labels` is `{"1": name}` as in the Decathlon, or `{name: 1}` as in nnU-Net, where
            a name may have several values: then it is that of the one that no smaller region holds.
        source: the file.
        classes: the bundle's values by class.
        synonyms: what else classes may be called; what a region of several values may be called ends in `*`.

    Returns:
        By value; -1 for those that are not listed. `None` when no name is told, or all values are the bundle's.

    Raises:
        InputError: when `labels` cannot be understood, a name is unknown or twice, or a class is missing.
    """
    labels = content.get("labels") if isinstance(content, dict) else None
    if labels is None:
        return None
    told = _innermost(_regions(labels, source), source)
    known = {_key(other): name for name in classes for other in (*synonyms.get(name, ()), name)}
    found = {value: known.get(_key(name)) for value, name in told.items()}
    _check_classes(told, found, classes, source)
    values = [0] + [-1] * max(found, default=0)
    for value, name in found.items():
        values[value] = classes[str(name)]
    return None if values == [*range(len(values))] else values


def _check_classes(
    told: Mapping[int, str], found: Mapping[int, str | None], classes: Mapping[str, int], source: Path
) -> None:
    """Checks that each of the bundle's classes is among those found, by value, once and with no other."""
    wrong = [told[value].rstrip("*") for value, name in found.items() if name is None]
    missing = [name for name in classes if name not in found.values()]
    if wrong or missing or len(found) > len(classes):
        there = ", ".join(f"{value} {name.rstrip('*')}" for value, name in told.items())
        rule = f"labels must be {', '.join(classes)}, each once; it lists {there}"
        rule += f"; unknown: {', '.join(wrong)}" * bool(wrong) + f"; missing: {', '.join(missing)}" * bool(missing)
        raise InputError([("", str(source), rule)])


def _key(name: str) -> str:
    return _plain(name) + "*" * name.endswith("*")


def _regions(labels: Any, source: Path) -> dict[str, list[int]]:
    """Values of each label, without the background."""
    try:
        pairs = list(labels.items())
        regions = dict(_named(pairs))
        background = [name for name, values in regions.items() if values == [0]]
        if len(regions) < len(pairs) or [_plain(name) for name in background] not in BACKGROUND:
            raise ValueError(background)
    except (ValueError, TypeError, AttributeError) as error:
        rule = (
            'has labels that are neither {"0": "background", "1": name} nor {"background": 0, name: 1}, each name once'
        )
        raise InputError([("", str(source), f"{rule}: {labels!r:.200}")]) from error
    return {name: values for name, values in regions.items() if name not in background}


def _named(pairs: list[tuple[Any, Any]]) -> Iterator[tuple[str, list[int]]]:
    """Names and values, whichever comes first."""
    numbered = all(str(key).isdecimal() for key, _ in pairs)
    for key, named in pairs:
        name, value = (named, key) if numbered else (key, named)
        yield (
            str(name),
            [number for each in (value if isinstance(value, list) else [value]) for number in _values(each)],
        )


def _values(value: Any) -> list[int]:
    number = int(value)
    if isinstance(value, bool | float) or not 0 <= number <= LARGEST:
        raise ValueError(value)
    return [number]


def _innermost(regions: Mapping[str, list[int]], source: Path) -> dict[int, str]:
    """Name of each value: that of the smallest region that holds it, with `*` at its end if it holds others too."""
    told: dict[int, str] = {}
    for name, values in sorted(regions.items(), key=lambda item: len(item[1])):
        free = [value for value in values if value not in told]
        if len(free) != 1:
            rule = f"label {name} has the values {values}, of which one must be in no smaller region; these are: {free}"
            raise InputError([("", str(source), rule)])
        told[free[0]] = name + "*" * (len(values) > 1)
    return dict(sorted(told.items()))
