"""MONAI's config language as far as text alone decides it: ids, macros, references and the merging of overlays.

Ids are written with `#` or `::` between their parts; `@id` refers to a resolved item, `%id` copies its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

Config = dict[str, Any]
Path = tuple[str, ...]

FILE_MACRO = re.compile(r"%.*\.(?:json|ya?ml)(?:::.*)?", re.IGNORECASE)
_REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")
_RELATIVE = re.compile(r"([@%])((?:::)+)")


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every scalar below `value` with its place."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, str(key)))
    else:
        yield path, value


def strings(value: Any) -> Iterator[tuple[Path, str]]:
    """Yield every string below `value` with its place; ids in it are made absolute and use `::`."""
    return ((path, _absolute(leaf, path)) for path, leaf in leaves(value) if isinstance(leaf, str))


def lookup(config: Config, id_: str) -> Any:
    """Return the item with this id, following macros on the way.

    Raises:
        KeyError: if there is none.
    """
    value: Any = config
    for part in _split(id_):
        value = _follow(config, value)
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(id_) from None
    return value


def missing(config: Config, ids: tuple[str, ...]) -> Iterator[str]:
    """Yield those ids that the config lacks, or whose macros lead back to themselves."""
    for id_ in ids:
        try:
            lookup(config, id_)
        except (KeyError, RecursionError):
            yield id_


def merge(base: Config, overlay: Config) -> Config:
    """Return a copy of `base` changed by `overlay` as MONAI merges a list of config files.

    A key may be a whole id; with the prefix `+` a mapping is updated and a list extended, otherwise the item is set.

    Raises:
        KeyError: if the parent of an item does not exist, or what `+` should extend.
        TypeError: if `+` meets anything but two mappings or two lists.
    """
    merged = deepcopy(base)
    for key, value in overlay.items():
        *parents, last = _split(key.removeprefix("+"))
        parent: Any = lookup(merged, "::".join(parents)) if parents else merged
        place: Any = int(last) if isinstance(parent, list) else last
        if not key.startswith("+"):
            parent[place] = deepcopy(value)
        elif isinstance(value, dict) and isinstance(parent[place], dict):
            parent[place].update(deepcopy(value))
        elif isinstance(value, list) and isinstance(parent[place], list):
            parent[place].extend(deepcopy(value))
        else:
            raise TypeError(key)
    return merged


def dangling(config: Config, metadata: Config) -> set[tuple[str, str]]:
    """Return (place, id) of every `@` reference and `%` macro without a target; `_meta_` holds the metadata."""
    known = {**config, "_meta_": metadata}
    found = ((place, id_) for place, text in strings(config) for id_ in _ids(text))
    return {("#".join(place), id_) for place, id_ in found if any(missing(known, (id_,)))}


def expand(config: Config, value: Any, *, path: Path = (), seen: frozenset[str] = frozenset()) -> Any:
    """Return `value` with its macros and references replaced by what they stand for, so that texts can be compared.

    Args:
        config: where ids are looked up.
        value: the part of `config` to expand.
        path: place of `value` in `config`, the origin of relative ids.
        seen: ids being expanded, which are left as they are where they refer to themselves.
    """
    if isinstance(value, dict):
        return {key: expand(config, item, path=(*path, str(key)), seen=seen) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(config, item, path=(*path, str(index)), seen=seen) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    text = _absolute(value, path)

    def target(id_: str) -> Any:
        if id_ in seen or any(missing(config, (id_,))):
            return f"@{id_}"
        return expand(config, lookup(config, id_), path=tuple(_split(id_)), seen=seen | {id_})

    if text.startswith("$"):
        return _REFERENCE.sub(lambda match: str(target(match[1])), text)
    ids = _ids(text)
    return target(ids[0]) if ids else text


def _ids(text: str) -> list[str]:
    """Return the ids that a string asks for."""
    if text.startswith("%"):
        return [] if FILE_MACRO.fullmatch(text) else [text[1:]]
    if text.startswith("$"):
        return _REFERENCE.findall(text)
    whole = _REFERENCE.fullmatch(text)
    return [whole[1]] if whole else []


def _follow(config: Config, value: Any) -> Any:
    """Return what a macro stands for, any other value as it is; a macro that leads back to itself has no target."""
    seen = set()
    while isinstance(value, str) and value.startswith("%") and value not in seen:
        seen.add(value)
        value = lookup(config, value[1:])
    return value


def _absolute(text: str, path: Path) -> str:
    """Write ids with `::`, and relative ids (`@#x` beside, `@##x` one level up) from the root."""

    def climb(match: re.Match[str]) -> str:
        return match[1] + "".join(f"{part}::" for part in path[: -(len(match[2]) // 2)])

    return _RELATIVE.sub(climb, text.replace("#", "::"))


def _split(id_: str) -> list[str]:
    return id_.replace("#", "::").split("::")
