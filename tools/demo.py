"""From training data to a picture of the result, through the commands that a user of a bundle types."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tools import BUNDLES
from tools.files import replacing
from tools.phantoms import phantoms
from tools.picture import Case, overview
from tools.split import find_cases, split

logger = logging.getLogger(__name__)

HELD_OUT = 0.2

Recipe = Mapping[str, Any]
Places = Mapping[str, str]


class Stage(NamedTuple):
    """One command of a demo."""

    title: str
    command: list[str]

    def shown(self) -> str:
        """The command as it is typed into a shell, in the current folder."""
        return " ".join(_quoted(word) for word in [_from_here(self.command[0]), *self.command[1:]])


def demo(bundle: str, *, data: str | None = None, output: str = "demo", **overrides: Any) -> None:
    """Train BUNDLE, segment scans that it has not seen, score them and draw the result.

    Without DATA everything happens on phantoms and takes a few minutes on two cores. With DATA, labelled scans in the
    layout that the bundle's docs/README.md describes, a fifth of the cases is held out: it chooses the weights, and
    the table and the picture show it. Training then takes as long as the bundle's settings make it; --max_epochs
    shortens it. Every command is shown before it runs, so that it can be typed again.

    An interrupted demo continues where it stopped when it is called again in the same way and the bundle has not
    changed; a finished one starts anew.

    Args:
        bundle: name of a bundle, for example vnet_atrial_mri.
        data: folder of labelled scans. Default: phantoms.
        output: folder for everything that is made: weights, masks, metrics.csv, overview.png.
        overrides: settings of the bundle's configs, handed to every command, for example --max_epochs 5 --axcodes RAS.

    Raises:
        ValueError: the bundle has no demo, or the data cannot be divided.
        FileNotFoundError: DATA is not a folder or holds no case.
        SystemExit: a command failed; the message repeats it.
    """
    start = time.monotonic()
    folder, recipe = _recipe(bundle)
    chosen = {name: {"true": True, "false": False}.get(str(value), value) for name, value in overrides.items()}
    places = prepare_data(bundle, recipe, data=data, output=Path(output))
    scenario = recipe["phantoms" if data is None else "data"]
    plan = stages(recipe, folder, places=places, scenario=scenario, overrides=chosen)
    run(plan, Path(output, "finished.json"), version=fingerprint(folder))

    metrics = read_metrics(Path(recipe["metrics"].format(**places)))
    sys.stdout.write(f"\n{table(metrics)}\n{recipe['legend']}\n")
    written = write_results(metrics, recipe, places=places, title=f"{bundle}: scans held out from training")
    lines = "\n".join(f"  {path}" for path in written)
    logger.info("\nDone in %s. The table and the picture:\n%s", _duration(time.monotonic() - start), lines)


def prepare_data(bundle: str, recipe: Recipe, *, data: str | None, output: Path) -> dict[str, str]:
    """Makes phantoms, or divides the user's scans, and writes the split files.

    Args:
        bundle: name of the bundle.
        recipe: its recipe.
        data: folder of labelled scans, `None` for phantoms.
        output: folder for what is made.

    Returns:
        `data`, `split`, `unseen`, `unseen_split` and `output`, the places that recipes refer to.
    """
    if data is None:
        sizes = recipe["phantoms"]
        train = phantoms(bundle, str(output / "phantoms/training"), **sizes["training"])
        unseen = phantoms(bundle, str(output / "phantoms/unseen"), **sizes["unseen"])
        split_file = split(str(train), str(output / "split.json"), validation=sizes["validation"])
    else:
        train, unseen = Path(data), output / "unseen"
        held_out = max(1, round(HELD_OUT * len(find_cases(train))))
        split_file = split(data, str(output / "split.json"), validation=held_out)
        link_cases(train, json.loads(split_file.read_text())["validation"], target=unseen)
    unseen_split = output / "unseen.json"
    with replacing(unseen_split) as partial:
        partial.write_text(json.dumps({"training": [], "validation": find_cases(unseen)}, indent=2) + "\n")
    places = {"data": train, "split": split_file, "unseen": unseen, "unseen_split": unseen_split, "output": output}
    return {name: str(path) for name, path in places.items()}


def link_cases(source: Path, cases: Iterable[str], *, target: Path) -> None:
    """Makes `target` a folder of links to the folders or files of `cases` in `source`, and to nothing else."""
    target.mkdir(parents=True, exist_ok=True)
    for link in target.iterdir():
        if link.is_symlink():
            link.unlink()
    for case in cases:
        found = [source / case] if (source / case).is_dir() else source.glob(f"{case}.*")
        for path in found:
            (target / path.name).symlink_to(path.resolve())


def stages(
    recipe: Recipe, folder: Path, *, places: Places, scenario: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[Stage]:
    """Puts the commands together.

    Args:
        recipe: recipe of the bundle.
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
        settings = {name: str(value).format(**places) for name, value in stage["settings"].items()}
        settings |= scenario.get("settings", {}) | scenario.get("stages", {}).get(stage["name"], {}) | overrides
        if any(name in settings and settings[name] == value for name, value in stage.get("unless", {}).items()):
            continue
        files = [_from_here(folder / "configs" / name) for name in [*stage["config"], *scenario.get("config", [])]]
        config_file = files[0] if len(files) == 1 else _literal(files)
        command = [sys.executable, "-m", "monai.bundle", "run", stage["run"], "--config_file", config_file]
        for name, value in settings.items():
            command += [f"--{name}", value if isinstance(value, str) else _literal(value)]
        found.append(Stage(stage["title"], command))
    return found


def fingerprint(folder: Path) -> str:
    """SHA-256 over the configs and the Python files of the bundle in `folder`."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("configs/*"), *folder.glob("*/*.py")]):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def run(plan: Sequence[Stage], progress: Path, *, version: str) -> None:
    """Runs the commands of `plan` one after the other, in this terminal.

    Args:
        plan: what to run.
        progress: JSON file of the finished commands, kept until all are; a plan that begins with them skips them.
        version: what the commands run; after a change of it nothing is skipped.

    Raises:
        SystemExit: a command failed or was interrupted.
    """
    commands = [stage.shown() for stage in plan]
    earlier: dict[str, Any] = json.loads(progress.read_text()) if progress.is_file() else {}
    done = earlier.get("finished", [])
    skip = len(done) if earlier.get("version") == version and commands[: len(done)] == done else 0
    environment = {"PYTHONWARNINGS": "ignore"} | os.environ
    for number, (stage, shown) in enumerate(zip(plan, commands, strict=True), start=1):
        logger.info("\n[%d/%d] %s\n%s\n", number, len(plan), stage.title, shown)
        if number <= skip:
            logger.info("finished earlier, not repeated")
            continue
        start = time.monotonic()
        try:
            subprocess.run(stage.command, env=environment, check=True)
        except (subprocess.CalledProcessError, KeyboardInterrupt) as error:
            end = f"failed with exit code {error.returncode}" if hasattr(error, "returncode") else "was interrupted"
            raise SystemExit(f"\nStage {number} of {len(plan)} ({stage.title}) {end}:\n{shown}") from None
        logger.info("%s: %s", stage.title, _duration(time.monotonic() - start))
        with replacing(progress) as partial:
            partial.write_text(json.dumps({"version": version, "finished": commands[:number]}, indent=2) + "\n")
    progress.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Reads a CSV with one row per case and the columns `case` and `dice`."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(metrics: Sequence[Mapping[str, str]]) -> str:
    """Lays out `metrics` as a text table; its last row has the means over the cases where a score is finite."""
    columns = {name: [_number(row[name]) for row in metrics] for name in metrics[0]}
    cells = [list(columns)]
    cells += [
        [row[name] if columns[name][i] is None else f"{columns[name][i]:.3f}" for name in row]
        for i, row in enumerate(metrics)
    ]
    cells.append(["mean", *map(_mean, list(columns.values())[1:])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = widths
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in cells]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mean(column: Iterable[float | None]) -> str:
    finite = [value for value in column if value is not None and math.isfinite(value)]
    return f"{statistics.fmean(finite):.3f}" if finite else ""


def write_results(metrics: Sequence[Mapping[str, str]], recipe: Recipe, *, places: Places, title: str) -> list[Path]:
    """Writes `metrics.csv`, and `overview.png` with the median and the worst case, into the output folder."""
    output = Path(places["output"])
    with replacing(output / "metrics.csv") as partial:
        partial.write_bytes(Path(recipe["metrics"].format(**places)).read_bytes())
    ranked = sorted(
        (row["case"] for row in metrics), key={row["case"]: float(row["dice"]) for row in metrics}.__getitem__
    )
    picked = {ranked[0]: "worst case", ranked[len(ranked) // 2]: "median case"}
    cases = [
        Case(
            f"{rank}, {case}", *(_file(recipe["files"][part].format(case=case, **places)) for part in Case._fields[1:])
        )
        for case, rank in reversed(picked.items())
    ]
    return [output / "metrics.csv", overview(cases, output / "overview.png", title=title)]


def _recipe(bundle: str) -> tuple[Path, Recipe]:
    """The folder of `bundle` and the recipe of its demo."""
    recipes = {folder: Path(__file__).parent / "recipes" / folder.name / "demo.yaml" for folder in BUNDLES}
    known = {folder.name: (folder, file) for folder, file in recipes.items() if file.is_file()}
    if bundle not in known:
        raise ValueError(f"no demo for bundle {bundle!r}; there are demos for: {', '.join(known)}")
    folder, file = known[bundle]
    return folder, yaml.safe_load(file.read_text())


def _file(pattern: str) -> Path:
    """The first file of `pattern`, whose last part may hold wildcards."""
    found = sorted(Path(pattern).parent.glob(Path(pattern).name))
    if not found:
        raise FileNotFoundError(f"no file {pattern}")
    return found[0]


def _from_here(path: str | Path) -> str:
    """`path` as typed in the current folder: relative when it lies below."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _literal(value: Any) -> str:
    """`value` as a Python literal without spaces, which is what `monai.bundle run` reads."""
    return "".join(repr(value).split())


def _quoted(word: str) -> str:
    """`word` quoted for a shell, legibly."""
    legible = "'" in word and not set(word) & set('"$`!\\')
    return f'"{word}"' if legible else shlex.quote(word)


def _duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
