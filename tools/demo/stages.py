"""The commands of a demo, as one types them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Stage", "of_variant", "settings_of", "stages"]

Recipe = Mapping[str, Any]
Places = Mapping[str, str]


class Stage(NamedTuple):
    """One command of a demo, and the folder that it makes again, if it does not replace what lies there."""

    title: str
    command: list[str]
    renews: Path | None = None

    def shown(self) -> str:
        """The command as it is typed into a shell, in the current folder."""
        return " ".join(_quoted(word) for word in [_from_here(self.command[0]), *self.command[1:]])


def stages(
    recipe: Recipe, folder: Path, *, places: Places, scenario: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[Stage]:
    """Puts the commands together.

    Args:
        recipe: recipe of the bundle. With `compare`, variants of the method by name and the config files, and mappings
            of settings, that each adds, a stage runs for every one of them if its settings name `{variant}`. A stage
            that is `alone` takes no config files of the scenario.
        folder: folder of the bundle.
        places: see `prepare_data`.
        scenario: the recipe's part for phantoms or for the user's data: `config` files to add, `settings` of every
            command, and of single `stages`.
        overrides: the user's settings, which win.

    Returns:
        The stages to run, without those that the settings switch off.
    """
    found = []
    for stage in recipe["stages"]:
        raw = stage["settings"] | settings_of(scenario, stage["name"])
        variants = recipe["compare"] if "{variant}" in str(raw) else {"": []}
        for variant, extra in variants.items():
            known, (adds, options) = {**places, "variant": variant}, of_variant(extra)
            settings = _filled(raw, known) | options | overrides
            if any(name in settings and settings[name] == value for name, value in stage.get("unless", {}).items()):
                continue
            added = [] if stage.get("alone") else scenario.get("config", [])
            files = [_from_here(folder / "configs" / name) for name in [*stage["config"], *adds, *added]]
            renewed = Path(stage["renews"].format(**known)) if "renews" in stage else None
            found.append(Stage(stage["title"].format(**known), _command(stage["run"], files, settings), renewed))
    return found


def settings_of(scenario: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Returns the settings that a scenario gives a stage, those of every command first."""
    return {**scenario.get("settings", {}), **scenario.get("stages", {}).get(stage, {})}


def of_variant(extra: Sequence[str | Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Returns the config files that a variant of a demo adds, and its settings."""
    options = [part for part in extra if not isinstance(part, str)]
    return [part for part in extra if isinstance(part, str)], {k: v for part in options for k, v in part.items()}


def _command(workflow: str, files: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    config_file = files[0] if len(files) == 1 else _literal(files)
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", config_file]
    ids = {key.lstrip("+").partition("::")[0] for file in files for key in yaml.safe_load(Path(file).read_bytes())}
    for name, value in settings.items():
        if re.split("#|::", name)[0] in ids:  # what a stage does not have is rejected
            command += [f"--{name}", value if isinstance(value, str) else _literal(value)]
    return command


def _from_here(path: str | Path) -> str:
    """`path` as typed in the current folder: relative when it lies below."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _filled(value: Any, places: Places) -> Any:
    """`value` with the places in all its texts."""
    if isinstance(value, Mapping):
        return {name: _filled(part, places) for name, part in value.items()}
    return value.format(**places) if isinstance(value, str) else value


def _literal(value: Any) -> str:
    """`value` as a Python literal, with spaces in its texts only."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name!r}:{_literal(part)}" for name, part in value.items()) + "}"
    return f"[{','.join(map(_literal, value))}]" if isinstance(value, list | tuple) else repr(value)


def _quoted(word: str) -> str:
    """`word` quoted for a shell, legibly."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`!\\') else shlex.quote(word)
