"""Options of the configs as tables: every key at the top of a config, its default and its comment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.tokens import StreamStartToken

__all__ = ["Option", "options", "table"]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is compiled
LONGEST = 90  # characters of a default in a table
HEADS = {"training", "evaluating", "inference", "run", "imports"}  # ids that run something, or prepare it


class Option(NamedTuple):
    """A key of a config, its default as it is written, and what the comment says; a component has a `target`."""

    name: str
    default: str
    comment: str
    target: str = ""


def options(config: Path) -> list[Option]:
    """Returns the keys at the top of a YAML config, in its order, without those that start a run.

    The comment of a key stands behind its first or its last line, else in whole lines above it. Keys that merge into a
    nested part (`train::trainer`) are among them, with `+` in front as they are written.

    Raises:
        ValueError: the file is no mapping.
    """
    text = config.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=LOADER)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{config}: is no mapping")
    comments, maker = _comments(text), yaml.SafeLoader("")
    lines = text.splitlines()
    found = []
    for key, value in root.value:
        first, last = key.start_mark.line, value.end_mark.line - (value.end_mark.column == 0)
        if key.value in HEADS:
            continue
        comment = comments.get(first) or comments.get(last) or _above(lines, first)
        content = maker.construct_object(value, deep=True)
        target = content.get("_target_", "") if isinstance(content, dict) else ""
        written = yaml.dump(content, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
        found.append(Option(key.value, written.removesuffix("\n").removesuffix("\n..."), comment, str(target)))
    return found


def _comments(text: str) -> dict[int, str]:
    """Number of a line -> the comment behind what stands in it."""
    ends: dict[int, int] = {}
    for token in yaml.scan(text, Loader=LOADER):
        if not isinstance(token, StreamStartToken):
            ends[token.end_mark.line] = max(ends.get(token.end_mark.line, 0), token.end_mark.column)
    lines = text.splitlines()
    rests = {line: lines[line][end:].strip() for line, end in ends.items() if end and line < len(lines)}
    return {line: rest.lstrip("# ") for line, rest in rests.items() if rest.startswith("#")}


def _above(lines: list[str], line: int) -> str:
    """The comment in whole lines right above a key; that of the file, before its first key, is none of a key's."""
    start = line
    while start and lines[start - 1].startswith("#"):
        start -= 1
    return " ".join(each.lstrip("# ") for each in lines[start:line]) if start else ""


def table(found: list[Option]) -> str:
    """Returns Markdown: one table of the options, one of the components, which an option replaces as a whole."""
    plain = [(f"`{o.name}`", _code(o.default), o.comment.replace("<", "&lt;")) for o in found if not o.target]
    parts = [(f"`{o.name}`", f"`{o.target}`", o.comment.replace("<", "&lt;")) for o in found if o.target]
    blocks = []
    if plain:
        blocks.append(_markdown(("Option", "Default", "Comment"), plain))
    if parts:
        blocks.append(_markdown(("Component", "Class or function", "Comment"), parts))
    return "\n\n".join(blocks)


def _code(default: str) -> str:
    shown = default if len(default) <= LONGEST else f"{default[: LONGEST - 2]} …"
    return f"`{shown}`" if "`" not in shown else f"`` {shown} ``"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
