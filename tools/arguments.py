"""Arguments of the command line: which options there are, and values as python-fire hands them over."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

__all__ = ["check_known", "check_options", "names", "require_text", "typed"]

NUMBERS = {int, float, bool, types.NoneType}
OPTION = re.compile(r"--([A-Za-z][\w-]*)")


def check_known(given: Iterable[str], known: Collection[str], *, what: str = "there is no option --{}") -> None:
    """Rejects a name that there is not.

    Args:
        given: names, for example of options.
        known: those that there are.
        what: the message; `{}` stands for the name.

    Raises:
        ValueError: the message has the nearest name, or all.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
            raise ValueError(f"{what.format(name)}, {hint}")


def check_options(function: Callable[..., Any], words: Sequence[str]) -> None:
    """Rejects options that a verb does not have, before it runs: python-fire finds them afterwards.

    A verb's positional arguments are no options. What a verb takes beyond its own options it checks itself.

    Args:
        function: the verb.
        words: what the command line gives it.

    Raises:
        ValueError: naming the option and the nearest one, or how to give an argument.
    """
    parameters = list(inspect.signature(function).parameters.values())
    given = [match[1].replace("-", "_") for match in map(OPTION.match, words) if match]
    positional = _of_kind(inspect.Parameter.POSITIONAL_OR_KEYWORD, parameters)
    if name := next(filter(positional.__contains__, given), None):
        raise ValueError(f"{name.upper()} is given without --{name}; see --help")
    if not _of_kind(inspect.Parameter.VAR_KEYWORD, parameters):
        switches = {f"no{each.name}" for each in parameters if isinstance(each.default, bool)}
        options = _of_kind(inspect.Parameter.KEYWORD_ONLY, parameters)
        check_known((name for name in given if name not in {*switches, "help"}), options)


def _of_kind(kind: object, parameters: Iterable[inspect.Parameter]) -> set[str]:
    return {each.name for each in parameters if each.kind is kind}


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
    """Rejects what was meant as text and came as something else: python-fire reads `1.0` as a number.

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
