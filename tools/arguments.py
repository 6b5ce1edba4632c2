"""Arguments of the command line as python-fire hands them over."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["names", "require_text"]


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
