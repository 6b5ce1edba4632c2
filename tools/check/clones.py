"""The price of having no shared library: how much code may stand in more than one bundle."""

from __future__ import annotations

import ast
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from io import StringIO
from typing import TypeGuard

from tools.check.model import Bundle, Finding, Source, bundle_rule
from tools.sync import FOLDER

LIMIT = 0.03
RUN = 6
Line = tuple[int, str]
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@bundle_rule
def clone_limit(bundle: Bundle) -> Iterator[Finding]:
    """At most 3 % of a bundle's code lines lie in runs of six or more that another bundle has too.

    Code lines are those with a word in them, without comments, docstrings and imports, compared token by token. What
    `make sync` writes does not count.
    """
    code = _code(bundle)
    others = {other.name: _runs(_code(other)) for other in bundle.repository.bundles if other.name != bundle.name}
    clones: dict[str, dict[int, str]] = defaultdict(dict)
    for file, lines in code.items():
        for start in range(len(lines) - RUN + 1):
            window = lines[start : start + RUN]
            for name, runs in others.items():
                if tuple(text for _, text in window) in runs:
                    clones[file].update((number, name) for number, _ in window)
    total = sum(map(len, code.values()))
    shared = sum(map(len, clones.values()))
    if shared > LIMIT * total:
        file = max(clones, key=lambda name: len(clones[name]))
        line, name = min(clones[file].items())
        reason = f"{shared} of {total} code lines of the bundle, more than {LIMIT:.0%}, stand in other bundles too"
        yield file, f"{reason}; here from line {line} on in {name}"


def _runs(code: dict[str, list[Line]]) -> set[tuple[str, ...]]:
    """Return every run of `RUN` lines."""
    texts = [[text for _, text in lines] for lines in code.values()]
    return {tuple(lines[start : start + RUN]) for lines in texts for start in range(len(lines) - RUN + 1)}


def _code(bundle: Bundle) -> dict[str, list[Line]]:
    """Return the code lines of each file, with their numbers."""
    return {name: _lines(source) for name, source in bundle.python.items() if f"/{FOLDER}/" not in name}


def _lines(source: Source) -> list[Line]:
    lines: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(StringIO(source.text).readline):
        if token.type not in _LAYOUT:
            lines[token.start[0]].append(token.string)
    for node in filter(_is_no_code, ast.walk(source.tree)):
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            lines.pop(number, None)
    texts = ((number, " ".join(tokens)) for number, tokens in sorted(lines.items()))
    return [(number, text) for number, text in texts if any(map(str.isalnum, text))]


def _is_no_code(node: ast.AST) -> TypeGuard[ast.stmt]:
    """Tell whether a node is an import, a docstring or another string that stands alone."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, (ast.Import, ast.ImportFrom))
