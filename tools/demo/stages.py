"""The commands of a demo, as one types them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Stage", "settings_of", "stages"]

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
        recipe: recipe of the bundle. With `compare`, variants of the method by name and the config files that each
            adds, a stage runs for every one of them if its settings name `{variant}`. A stage that is `alone` takes no
            config files of the scenario.
        folder: folder of the bundle.
        places: see `prepare_data`.
        scenario: the recipe's part for phantoms or for the user's data: `config` files to add, `settings` of every
            command, and of single `stages`, also of one variant: `training student`.
        overrides: the user's settings, which win.

    Returns:
        The stages to run, without those that the settings switch off.
    """
    found = []
    for stage in recipe["stages"]:
        raw = stage["settings"] | settings_of(scenario, stage["name"])
        variants = recipe["compare"] if "{variant}" in str(raw) else {"": []}
        for variant, extra in variants.items():
            known = {**places, "variant": variant}
            settings = _filled(raw | settings_of(scenario, stage["name"], variant=variant), known) | overrides
            if any(name in settings and settings[name] == value for name, value in stage.get("unless", {}).items()):
                continue
            added = [] if stage.get("alone") else scenario.get("config", [])
            files = [_from_here(folder / "configs" / name) for name in [*stage["config"], *extra, *added]]
            config_file = files[0] if len(files) == 1 else _literal(files)
            command = [sys.executable, "-m", "monai.bundle", "run", stage["run"], "--config_file", config_file]
            contents = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in files]
            ids = {key.lstrip("+").partition("::")[0] for content in contents for key in content}
            for name, value in settings.items():
                if re.split("#|::", name)[0] in ids:  # what a stage does not have is refused
                    command += [f"--{name}", value if isinstance(value, str) else _literal(value)]
            renewed = Path(stage["renews"].format(**known)) if "renews" in stage else None
            found.append(Stage(stage["title"].format(**known), command, renewed))
    return found


def settings_of(scenario: Mapping[str, Any], stage: str, *, variant: str = "") -> dict[str, Any]:
    """Returns the settings that a scenario gives a stage, those of every command first."""
    own = scenario.get("stages", {})
    return {**scenario.get("settings", {}), **own.get(stage, {}), **own.get(f"{stage} {variant}", {})}


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
