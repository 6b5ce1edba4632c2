"""Arguments of the command line as python-fire hands them over."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

__all__ = ["names", "require_text", "typed"]

NUMBERS = {int, float, bool, types.NoneType}


def typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a verb that takes numbers, `true` and `false` as its signature says: to python-fire `false` is a text.

    It raises `ValueError` where an argument is none of them.
    """
    signature, hints = inspect.signature(function), get_type_hints(function)

    @functools.wraps(function)
    def verb(*args: Any, **given: Any) -> Any:
        bound = signature.bind(*args, **given)
        for name, value in bound.arguments.items():
            kinds = {*get_args(hints[name])} or {hints[name]}
            if kinds <= NUMBERS:
                bound.arguments[name] = _number(name, value, kinds)
        return function(*bound.args, **bound.kwargs)

    return verb


def _number(name: str, value: Any, kinds: set[Any]) -> Any:
    if bool in kinds:
        value = {"true": True, "false": False}.get(str(value).lower(), value)
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    what = "true or false" if bool in kinds else "a number" if float in kinds else "a whole number"
    raise ValueError(f"--{name} must be {what}, it is {value!r}")


def require_text(**arguments: object) -> None:
    """Refuses what was meant as text and came as something else: python-fire reads `1.0` as a number.

    Raises:
        ValueError: an argument is neither text nor absent; the message says how to write it.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} {value!r} was read as {type(value).__name__}, quote it: \"'{value}'\"")


def names(given: str | Sequence[str]) -> list[str]:
    """Returns names that were given as a text with commas between them, or as the sequence that fire makes of it.

    Raises:
        ValueError: as `require_text`.
    """
    parts: Sequence[str] = given if isinstance(given, list | tuple) else str(given).split(",")
    for name in [given] if isinstance(given, int | float) else parts:
        require_text(name=name)
    return [name.strip() for name in parts if name.strip()]
