"""The first step of a run: the bundle is the one whose config was given, and every option is what its default is."""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from traceback import walk_stack
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.utils import merge_kv

from .option_types import OFF, PATHS, UNKNOWN, UnfitError, as_it_is, fitted, is_expression, is_plain, literal_of
from .record import running_workflow
from .validation import InputError, Problem, install_excepthook

__all__ = ["start_run"]

MONAIS = {*inspect.signature(monai.bundle.run).parameters, "workflow_name", "workflow_type"} - {"override"}
RUNS = ("run", "run_workflow")
COMPONENT = ("_target_", "_disabled_", "_mode_", "_requires_", "_desc_")
OWN_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
REFERENCE = re.compile(r"@(\w+)")


def start_run() -> None:
    """Checks how the run was started, before anything of its config is built, and puts its options right.

    An option is a value that the command line, `args_file` or a keyword of `monai.bundle.run` gives for an id of the
    config. What can mean one thing only becomes that: `true`, `false`, `null` and `None`, which arrive as texts,
    numbers that name folders, `~`, and `#` in paths, of which MONAI makes `::`. Expressions are left alone.

    Raises:
        InputError: when a config file or the metadata is of another copy of the bundle or another bundle, an option is
            mistyped, given twice, of another kind than its default, or out of range.
    """
    install_excepthook()
    workflow = running_workflow()
    if workflow is None:
        return
    called = _call_of_monai()
    files = [Path(file) for file in _as_list(called.get("config_file"))]
    problems = list(_foreign(workflow, files))
    if not problems and files:
        problems = _put_right(workflow, called, files)
    if problems:
        raise InputError(problems)


def _put_right(workflow: ConfigWorkflow, called: Mapping[str, Any], files: list[Path]) -> list[Problem]:
    """What is wrong with settings in the user's own files and with options; the others are as their ids take them."""
    values: dict[str, Any] = {}
    own = [file for file in files if OWN_CONFIGS in (file.absolute().parent.resolve(), file.resolve().parent)]
    shipped = _Defaults(own or files, workflow.parser)
    every = _Defaults(files, workflow.parser) if own and own != files else shipped
    problems = [*_overlays(workflow, set(files) - set(own) if own else (), shipped, values)]
    problems += _options(workflow, called, values, defaults=(shipped, every))
    for name, value in values.items():
        workflow.parser[name] = value
    return problems


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _call_of_monai() -> dict[str, Any]:
    """The arguments of `monai.bundle.run` that this is a step of, those of `args_file` among them."""
    for frame, _ in walk_stack(inspect.currentframe()):
        if frame.f_globals.get("__name__") == "monai.bundle.scripts" and frame.f_code.co_name in RUNS:
            return _arguments(frame.f_locals)
    return {}


def _arguments(local: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in local.items() if key in MONAIS and value is not None}
    given |= local.get("override") or local.get("kwargs") or {}
    file = given.pop("args_file", None)
    return {**(ConfigParser.load_config_file(file) if isinstance(file, str) else file or {}), **given}


def _foreign(workflow: ConfigWorkflow, files: Sequence[Path]) -> Iterator[Problem]:
    """Files that lie in the `configs` of another folder with a bundle, and metadata of another bundle."""
    own = OWN_CONFIGS.parent
    metas = [Path(file) for file in _as_list(workflow.meta_file)]
    for file in [*(files or [Path(workflow.config_root_path, "any")]), *metas]:
        folders = {file.absolute().parent.resolve(), file.resolve().parent}
        roots = {folder.parent for folder in folders if folder.name == "configs" and _is_bundle(folder.parent)}
        if roots and own not in roots:
            rule = (
                f"is of the bundle in {min(roots)}, but the code that runs is that of {own}: start it from {min(roots)}"
            )
            yield "", str(file), f"{rule}, in a process of its own, and without the other folder in PYTHONPATH"
            return
    yield from _foreign_metadata(workflow, metas)


def _foreign_metadata(workflow: ConfigWorkflow, metas: Sequence[Path]) -> Iterator[Problem]:
    known = OWN_CONFIGS / "metadata.json"
    if known.is_file() and metas:
        names = [json.loads(known.read_text(encoding="utf-8")).get("name"), workflow.parser.get("_meta_::name")]
        if None not in names and names[0] != names[1]:
            yield "", str(metas[-1]), f"is the metadata of another bundle, {names[1]!r}; this one is {names[0]!r}"


def _is_bundle(root: Path) -> bool:
    return (root / "configs/metadata.json").is_file() or (root / __package__.partition(".")[0]).is_dir()


def _overlays(
    workflow: ConfigWorkflow, files: Iterable[Path], defaults: _Defaults, values: dict[str, Any]
) -> Iterator[Problem]:
    """What is wrong with settings in the user's own files; adds to `values` those that have to be put right."""
    for file in files:
        for name, value in ConfigParser.load_config_file(file).items():
            try:
                fit = defaults.fitted(name, value, None) if name in defaults.parser else value
            except UnfitError as error:
                yield "", str(file), f"{name} {error}"
                continue
            if fit is not value and workflow.parser[name] in (value, str(value).replace("#", "::")):
                values[name] = fit


def _options(
    workflow: ConfigWorkflow,
    called: Mapping[str, Any],
    values: dict[str, Any],
    *,
    defaults: tuple[_Defaults, _Defaults],
) -> Iterator[Problem]:
    """What is wrong with the options; adds to `values` those that have to be put right.

    Args:
        workflow: of the run.
        called: the options, and arguments of MONAI.
        values: by id.
        defaults: of the bundle's own config files, and of all, which count for ids that the former lack.
    """
    typed = _typed()
    for name in ("init_id", "final_id"):  # where Fire puts words that belong to no option
        if called.get(name) is not None and called[name] not in workflow.parser:
            rule = "belongs to no option: texts with blanks, and lists, want quotation marks around them"
            yield "", str(called[name]), rule
    for option, value in called.items():
        words = typed.get(option, [])
        try:
            if len(words) > 1:
                raise UnfitError(f"is given {len(words)} times: {', '.join(words)}")
            if option not in MONAIS:
                _put_option_right(option.replace("#", "::"), value, values, words=words, defaults=defaults)
        except UnfitError as error:
            yield "", f"--{option}", str(error)


def _put_option_right(
    name: str, value: Any, values: dict[str, Any], *, words: Sequence[str], defaults: tuple[_Defaults, _Defaults]
) -> None:
    shipped, every = defaults
    judge = shipped if name in shipped.parser else every
    if words and "#" in words[0] and isinstance(value, list | dict):  # MONAI has put :: into it
        value = DefaultParseValue(words[0])
    fit = judge.fitted(name, value, words[0] if words else None)
    if fit is None or fit is not value:
        values[name] = fit


def _typed() -> dict[str, list[str]]:
    """The words after each option, as they were typed: Fire makes numbers of some, and takes `#` for a comment."""
    found: dict[str, list[str]] = {}
    program, *words = sys.argv
    if Path(program).parts[-3:] == ("monai", "bundle", "__main__.py"):
        for word, following in zip(words, [*words[1:], "--"], strict=True):
            if re.match(r"--|-[a-zA-Z]", word):
                name, equals, text = word.lstrip("-").partition("=")
                text = text if equals else "true" if re.match(r"--|-[a-zA-Z]", following) else following
                found.setdefault(name.replace("-", "_"), []).append(text)
    return found


def _nearest(name: str, known: Sequence[str], *, place: str) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return "#".join([*place.split("::"), *close]).lstrip("#") if close else ""


class _Defaults:
    """What the config files say without options.

    Args:
        files: the config files, which are merged in this order.
        parser: of the run; what it refers to exists.
    """

    def __init__(self, files: Sequence[Path], parser: ConfigParser) -> None:
        self.layers = [ConfigParser.load_config_file(file) for file in files]
        self.parser = ConfigParser(config={})
        for layer in self.layers:
            for name, value in layer.items():
                merge_kv(self.parser, name, deepcopy(value))
        self.parser["_meta_"] = parser.get("_meta_", {})
        self.text = json.dumps(parser.config, default=str)
        self.referred = set(REFERENCE.findall(self.text))
        self.locator = parser.locator

    def fitted(self, name: str, value: Any, typed: str | None) -> Any:
        """Returns the value of an option as its id takes it.

        Raises:
            UnfitError: when it takes no such value, or there is no such id.
        """
        if (close := self._unknown(name)) is not None:
            raise UnfitError(f"is no option of these config files{close and f'; did you mean --{close}?'}")
        try:
            return as_it_is(fitted(self._setting(name), value, defaults=self._of(name, value), typed=typed))
        except UnfitError as error:
            raise UnfitError(f"{error}; it is {value if typed is None else typed!r}") from error

    def _unknown(self, name: str) -> str | None:
        """The nearest id, or "", where no config file has an id, nothing refers to it, and no component takes it."""
        if name in self.parser or name.partition("::")[0] in self.referred - set(self.parser.config):
            return None
        place, _, last = name.rpartition("::")
        parent = self.parser.get(place) if place else self.parser.config
        if not isinstance(parent, Mapping) or not parent or re.search(rf"@{name}\b", self.text):
            return None
        known = [*parent, *(self._parameters(parent) if place else MONAIS)]
        return None if {last, "**"} & set(known) else _nearest(last, known, place=place)

    def _parameters(self, component: Mapping[str, Any]) -> dict[str, Any]:
        """Names and defaults of what a component can be given; `**` where that is anything."""
        if "_target_" not in component:
            return {}
        target = component["_target_"]
        if isinstance(target, str):
            path = ConfigComponent(config=dict(component), locator=self.locator).resolve_module_name()
            target = locate(path) if isinstance(path, str) else path
        try:
            parameters = inspect.signature(target).parameters.values()
        except (TypeError, ValueError):
            return {"**": UNKNOWN}
        found = {item.name: item.default for item in parameters if item.kind is not item.VAR_KEYWORD}
        any_name = {"**": UNKNOWN} if any(item.kind is item.VAR_KEYWORD for item in parameters) else {}
        return {**dict.fromkeys(COMPONENT, UNKNOWN), **found, **any_name}

    def _setting(self, name: str) -> str:
        """The setting at the end of the references that start at an id, which says more of its use; no path's."""
        settings = {f"@{setting}": setting for setting in self.parser.config.keys() - PATHS}
        while isinstance(value := self.parser.get(name), str) and value in settings:
            name = settings[value]
        return name

    def _of(self, name: str, given: Any) -> list[Any]:
        """The values that the config files give an id, the one that counts first; of an expression its result."""
        place, _, last = name.rpartition("::")
        parent = self.parser.get(place) if place else None
        nullable = [None] if place else [OFF] if f'"$not @{name}"' in self.text else []
        if name not in self.parser:
            found = self._parameters(parent).get(last, UNKNOWN) if isinstance(parent, Mapping) else UNKNOWN
            return [found if is_plain(found) else UNKNOWN, *nullable]
        value = self.parser.get(name)
        earlier = [layer[name] for layer in reversed(self.layers) if name in layer]
        plain = itertools.filterfalse(is_expression, earlier)
        return [self._evaluated(name, given) if is_expression(value) else value, *plain, *nullable]

    def _evaluated(self, name: str, given: Any) -> Any:
        cases = isinstance(given, list | tuple) and any(isinstance(item, Mapping) for item in given)
        if cases or isinstance(literal_of(given), bool | None):  # a network may be built, a folder read for nothing
            return UNKNOWN
        try:
            value = self.parser.get_parsed_content(name)
        except Exception:  # of a file that is not there, say: then the value is not judged
            return UNKNOWN
        return value if is_plain(value) else UNKNOWN
