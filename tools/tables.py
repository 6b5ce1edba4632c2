"""Tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["aligned", "markdown"]


def aligned(*blocks: Sequence[Sequence[str]], left: int = 1) -> str:
    """Returns columns of equal width, the first `left` to the left; a rule stands between the blocks of rows.

    >>> print(aligned([["case", "dice"]], [["a", "0.9"]]))
    case  dice
    ----------
    a      0.9
    """
    widths = [max(map(len, column)) for column in zip(*(row for block in blocks for row in block), strict=True)]
    rule = "\n" + "-" * (sum(widths) + 2 * (len(widths) - 1)) + "\n"

    def line(row: Sequence[str]) -> str:
        sides = (str.ljust if i < left else str.rjust for i in range(len(row)))
        return "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True))

    return rule.join("\n".join(map(line, block)) for block in blocks)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, its last line without a line break.

    >>> print(markdown(["", "dice"], [["ours", "0.9"]]))
    | | dice |
    |---|---|
    | ours | 0.9 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(line.replace("  ", " ").replace("  ", " ") for line in lines)
