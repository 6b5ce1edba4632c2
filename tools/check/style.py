"""Sizes, signatures and docstrings of our own code; ruff sees to complexity and layout, mypy to types."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tools.check.model import Finding, Folder, UnreadableError, code_rule

FILE_LINES = 300
FUNCTION_LINES = 60
POSITIONAL = 2
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@code_rule
def parses(folder: Folder) -> Iterator[Finding]:
    """Every Python file can be parsed; the other rules pass by a folder where one cannot."""
    for file in folder.relative("*.py"):
        try:
            folder.parse(file)
        except UnreadableError as error:
            yield file, f"cannot be parsed: {error.__cause__}"


@code_rule
def file_length(folder: Folder) -> Iterator[Finding]:
    """A Python file has at most 300 lines."""
    for file, source in folder.python.items():
        if (lines := len(source.text.splitlines())) > FILE_LINES:
            yield file, f"has {lines} lines, more than {FILE_LINES}"


@code_rule
def function_length(folder: Folder) -> Iterator[Finding]:
    """A function has at most 60 lines, its docstring and decorators not counted."""
    for file, source in folder.python.items():
        for node in ast.walk(source.tree):
            if isinstance(node, Function) and (lines := _span(node) - _span(_docstring(node))) > FUNCTION_LINES:
                yield file, f"{node.name} has {lines} lines, more than {FUNCTION_LINES}"


@code_rule
def public_docstrings(folder: Folder) -> Iterator[Finding]:
    """Every module and everything public in it has a docstring."""
    for file, source in folder.python.items():
        if not ast.get_docstring(source.tree):
            yield file, "the module has no docstring"
        for name, node in _public(source.tree):
            if not name.endswith("__") and not ast.get_docstring(node):
                yield file, f"{name} has no docstring"


@code_rule
def keyword_only(folder: Folder) -> Iterator[Finding]:
    """Public functions and constructors take at most two arguments by position."""
    for file, source in folder.python.items():
        for name, node in _public(source.tree):
            if not isinstance(node, Function):
                continue
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            if names[:1] in (["self"], ["cls"], ["ctx"]):
                del names[0]
            if len(names) > POSITIONAL:
                yield file, f"{name} takes {len(names)} arguments by position, more than {POSITIONAL}"


def _public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield name and node of public classes, functions and methods, and of constructors."""
    for child in node.body:
        if isinstance(child, Definition) and (not child.name.startswith("_") or child.name == "__init__"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{prefix}{child.name}.")


def _docstring(node: Function) -> ast.stmt | None:
    return node.body[0] if ast.get_docstring(node) is not None else None


def _span(node: ast.stmt | None) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1 if node else 0
