"""What a rule sees (repository, bundles, parsed files), what it yields, and the list of all rules."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tools.check.config import Config

NOT_OURS = {"__pycache__", "cache", "eval", "models"}
Finding = tuple[str, str]
"""File, relative to the bundle (or to `tools`, or to the repository), and the reason why it breaks the rule."""


class UnreadableError(Exception):
    """A file that is absent or cannot be parsed: `files`, `readable` or `parses` report it, other rules pass it by."""


@dataclass(frozen=True)
class Problem:
    """One breach of one rule."""

    rule: str
    bundle: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.bundle}/{self.file}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """One Python file as text and as syntax tree."""

    text: str
    tree: ast.Module


class Folder:
    """A named folder with the repository it stands in."""

    def __init__(self, path: Path, repository: Repository) -> None:
        self.path = path
        self.name = path.name
        self.repository = repository

    def relative(self, pattern: str) -> list[str]:
        """Return the files below that match `pattern`, as sorted posix paths, without weights, results and caches."""
        found = (path.relative_to(self.path) for path in self.path.rglob(pattern) if path.is_file())
        return sorted(path.as_posix() for path in found if not NOT_OURS.intersection(path.parts))

    def text(self, file: str) -> str:
        """Return the content of `file`.

        Raises:
            UnreadableError: if it is absent or no UTF-8 text.
        """
        try:
            return (self.path / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(file) from error

    def parse(self, file: str) -> Source:
        """Return the Python file `file`.

        Raises:
            UnreadableError: if it is absent or not Python.
        """
        text = self.text(file)
        try:
            return Source(text, ast.parse(text))
        except SyntaxError as error:
            raise UnreadableError(file) from error

    @cached_property
    def python(self) -> dict[str, Source]:
        """Every Python file below, by its relative path."""
        return {file: self.parse(file) for file in self.relative("*.py")}


class Bundle(Folder):
    """One bundle with its parsed configs."""

    @cached_property
    def packages(self) -> list[str]:
        """Names of the Python packages in the bundle's root."""
        return sorted(init.parent.name for init in self.path.glob("*/__init__.py"))

    @cached_property
    def configs(self) -> list[str]:
        """Paths of all YAML configs."""
        return sorted(f"configs/{path.name}" for path in self.path.glob("configs/*.yaml"))

    @property
    def metadata(self) -> Config:
        """Content of `configs/metadata.json`."""
        return self.config("configs/metadata.json")

    def mapping(self, key: str) -> Config:
        """Return a mapping of the metadata, empty if there is none: what is wrong then is up to the schema."""
        value = self.metadata.get(key)
        return value if isinstance(value, dict) else {}

    def config(self, file: str) -> Config:
        """Return the mapping in a YAML or JSON file; parsed once, so treat it as constant.

        Raises:
            UnreadableError: if it is absent, cannot be parsed or holds no mapping.
        """
        if file not in self._parsed:
            load = json.loads if file.endswith(".json") else _load_yaml
            try:
                content = load(self.text(file))
            except (yaml.YAMLError, json.JSONDecodeError) as error:
                raise UnreadableError(file) from error
            if not isinstance(content, dict):
                raise UnreadableError(file)
            self._parsed[file] = content
        return self._parsed[file]

    @cached_property
    def _parsed(self) -> dict[str, Config]:
        return {}


class Repository(Folder):
    """The repository: its bundles and every folder whose code is held to the style of the collection."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, self)
        self.name = "."
        self.bundles = [Bundle(folder.parent, self) for folder in sorted(path.glob("bundles/*/configs"))]
        self.code: list[Folder] = [*self.bundles, Folder(path / "tools", self)]


@dataclass(frozen=True)
class Rule:
    """A check and the folders it looks at."""

    name: str
    folders: Callable[[Repository], Sequence[Folder]]
    findings: Callable[[Any], Iterator[Finding]]

    def apply(self, repository: Repository) -> Iterator[Problem]:
        """Yield a problem for every finding in every folder; an unreadable file ends the rule for its folder."""
        for folder in self.folders(repository):
            try:
                for file, reason in self.findings(folder):
                    yield Problem(self.name, folder.name, file, " ".join(reason.split()))
            except UnreadableError:
                continue


RULES: list[Rule] = []
F = TypeVar("F", bound=Folder)
Check = Callable[[F], Iterator[Finding]]


def bundle_rule(function: Check[Bundle]) -> Check[Bundle]:
    """Register a rule that every bundle obeys."""
    RULES.append(Rule(function.__name__, lambda repository: repository.bundles, function))
    return function


def code_rule(function: Check[Folder]) -> Check[Folder]:
    """Register a rule that every bundle and the tools obey."""
    RULES.append(Rule(function.__name__, lambda repository: repository.code, function))
    return function


def repository_rule(function: Check[Repository]) -> Check[Repository]:
    """Register a rule about the repository as a whole."""
    RULES.append(Rule(function.__name__, lambda repository: [repository], function))
    return function


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
