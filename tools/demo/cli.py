"""From training data to a figure of the result, through the commands that a user of a bundle types."""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tools import REPO
from tools.demo.data import fingerprint, prepare_data
from tools.demo.outputs import check_settings, write_bundle, write_studies
from tools.demo.stages import Places, Recipe, Stage, settings_of, stages
from tools.demo.tables import Rows, comparison, read_metrics, table
from tools.files import read_json
from tools.report.figure import Case, overview
from tools.shared.files import write_table, write_text

logger = logging.getLogger(__name__)


def demo(bundle: str, *, data: str | None = None, output: str | None = None, **overrides: Any) -> None:
    """Train BUNDLE, segment scans that it has not seen, score them and draw the result.

    Without DATA everything happens on phantoms and takes a few minutes on two cores. With DATA, labelled scans in the
    layout that the bundle's docs/README.md describes, a fifth of the cases is held out: it chooses the weights, and
    the table and the figure show it. Training then takes as long as the bundle's settings make it; --max_epochs
    shortens it. Every command is shown before it runs, so that it can be typed again.

    An interrupted demo continues where it stopped, its figures included, when it is called again in the same way and
    the bundle has not changed; a finished one starts again.

    Args:
        bundle: name of a bundle, for example vnet_atrial_mri.
        data: folder of labelled scans. Default: phantoms.
        output: folder for everything that is made: weights, masks, metrics.csv, overview.png; in `bundle` the trained
            bundle, in `studies` the held-out phantoms for MONAI Label. Default: demo/BUNDLE.
        overrides: settings of the bundle's configs, handed to every command, for example --max_epochs 5 --axcodes RAS.

    Raises:
        ValueError: the bundle has no demo, its demo no such setting, or the data cannot be divided.
        FileNotFoundError: DATA is not a folder or holds no case.
        SystemExit: a command failed; the message repeats it.
    """
    start, output = time.monotonic(), output or f"demo/{bundle}"
    folder, recipe = _recipe(bundle)
    scenario = recipe["phantoms" if data is None else "data"]
    check_settings(overrides, folder, stages=recipe["stages"], others=[scenario, *recipe.get("compare", {}).values()])
    chosen = {name: {"true": True, "false": False}.get(str(value), value) for name, value in overrides.items()}
    places = prepare_data(bundle, recipe, data=data, output=Path(output))
    plan = stages(recipe, folder, places=places, scenario=scenario, overrides=chosen)
    finished = Path(output, "finished.json")
    run(plan, finished, version=fingerprint(folder))

    metrics = collect(recipe, places)
    text = comparison(metrics, **recipe["table"]) if "table" in recipe else table(metrics)
    sys.stdout.write(f"\n{text}\n{recipe['legend']}\n")
    shown = {**recipe, "files": scenario.get("files", recipe.get("files"))}
    written = write_results(metrics, shown, places=places, title=f"{bundle}: {scenario['title']}")
    written.append(output_bundle(folder, recipe, scenario=scenario, places=places, overrides=chosen))
    if data is None:
        written.append(
            write_studies(Path(places["held_out"]), Path(output, "studies"), labels=recipe["bundle"]["labels"])
        )
    finished.unlink(missing_ok=True)
    lines = "\n".join(f"  {path}" for path in written)
    logger.info(
        "\nDone in %s. The table, the figures and, for further use, the trained bundle%s:\n%s"
        "\nA page with curves, cases and settings: python -m tools report %s",
        _duration(time.monotonic() - start),
        " and held-out scans" if data is None else "",
        lines,
        output,
    )


def run(plan: Sequence[Stage], progress: Path, *, version: str) -> None:
    """Runs the commands of `plan` one after the other, in this terminal.

    A plan that starts again sets states in its folders of weights aside: they would end or reject its trainings.

    Args:
        plan: what to run.
        progress: JSON file of the finished commands, for the caller to remove; a plan that begins with them skips them.
        version: what the commands run; after a change of it nothing is skipped.

    Raises:
        SystemExit: a command failed or was interrupted.
    """
    commands = [stage.shown() for stage in plan]
    finished = _finished(progress, commands, version=version)
    if finished is None:
        _set_states_aside(plan)
    skip = finished or 0
    _note(progress, version, commands[:skip])
    for number, (stage, shown) in enumerate(zip(plan, commands, strict=True), start=1):
        logger.info("\n[%d/%d] %s\n%s\n", number, len(plan), stage.title, shown)
        if number <= skip:
            logger.info("finished earlier, not repeated")
            continue
        start = time.monotonic()
        if stage.renews:
            shutil.rmtree(stage.renews, ignore_errors=True)
        try:
            subprocess.run(stage.command, env={"PYTHONWARNINGS": "ignore"} | os.environ, check=True)
        except (subprocess.CalledProcessError, KeyboardInterrupt) as error:
            end = f"failed with exit code {error.returncode}" if hasattr(error, "returncode") else "was interrupted"
            raise SystemExit(f"\nStage {number} of {len(plan)} ({stage.title}) {end}:\n{shown}") from None
        logger.info("%s: %s", stage.title, _duration(time.monotonic() - start))
        _note(progress, version, commands[: max(number, skip)])


def _finished(progress: Path, commands: Sequence[str], *, version: str) -> int | None:
    """How many commands an earlier call finished; none where it ran another plan or version, or there was none."""
    earlier: dict[str, Any] = read_json(progress) if progress.is_file() else {}
    done = earlier.get("finished", [])
    return len(done) if earlier.get("version") == version and commands[: len(done)] == done else None


def _note(progress: Path, version: str, finished: Sequence[str]) -> None:
    write_text(progress, json.dumps({"version": version, "finished": finished}, indent=2) + "\n")


def _set_states_aside(plan: Sequence[Stage]) -> None:
    for folder in {s.command[s.command.index("--ckpt_dir") + 1] for s in plan if "--ckpt_dir" in s.command}:
        for state in list(Path(folder).glob("*training_state.pt")):
            state.replace(state.with_name(f"{state.stem}_previous.pt"))


def collect(recipe: Recipe, places: Places) -> list[dict[str, str]]:
    """Reads the scores of the evaluation, a row per case; of every variant, with its name in the column `method`."""
    if "compare" not in recipe:
        return read_metrics(Path(recipe["metrics"].format(**places)))
    files = {name: Path(recipe["metrics"].format(variant=name, **places)) for name in recipe["compare"]}
    return [{"method": name, **row} for name, file in files.items() for row in read_metrics(file)]


def write_results(metrics: Rows, recipe: Recipe, *, places: Places, title: str) -> list[Path]:
    """Writes `metrics.csv`, and `overview.png` with the median and the worst case, into the output folder.

    Cases are ranked by their Dice coefficient, the mean of all variants; `where` of the recipe's `files` limits them.

    Returns:
        These files, and the `figures` that stages of the recipe made.
    """
    output = Path(places["output"])
    write_table(output / "metrics.csv", metrics)
    files = recipe["files"]
    rows = [row for row in metrics if all(row[name] == value for name, value in files.get("where", {}).items())]
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["case"], []).append(float(row["dice"]))
    ranked = sorted(scores, key=lambda case: statistics.fmean(scores[case]))
    picked = {ranked[0]: "worst case", ranked[len(ranked) // 2]: "median case"}
    described = {row["case"]: {**row, **places} for row in rows}
    variants = recipe.get("compare", ["prediction"])
    cases = [
        Case(
            f"{rank}, {case}",
            _file(files["image"].format(**described[case])),
            _file(files["reference"].format(**described[case])),
            {name: _file(files["prediction"].format(variant=name, **described[case])) for name in variants},
            {name: _file(pattern.format(**described[case])) for name, pattern in files.get("maps", {}).items()},
        )
        for case, rank in reversed(picked.items())
    ]
    figures = [Path(figure.format(**places)) for figure in recipe.get("figures", [])]
    return [output / "metrics.csv", overview(cases, output / "overview.png", title=title), *figures]


def output_bundle(
    folder: Path, recipe: Recipe, *, scenario: Mapping[str, Any], places: Places, overrides: Mapping[str, Any]
) -> Path:
    """Writes the trained bundle, with the settings of the stages that the recipe names; returns its folder."""
    chosen = recipe["bundle"]
    settings = {config: {**settings_of(scenario, chosen[config]), **overrides} for config in ("inference", "train")}
    return write_bundle(
        folder,
        Path(places["output"], "bundle", folder.name),
        models=Path(chosen["models"].format(**places)),
        overlays=scenario.get("config", []),
        settings=settings,
    )


def _recipe(bundle: str) -> tuple[Path, Recipe]:
    """The folder of `bundle` and the recipe of its demo."""
    recipes = {file.parent.name: file for file in sorted((REPO / "tools/per_bundle").glob("*/demo.yaml"))}
    if bundle not in recipes:
        raise ValueError(f"no demo for bundle {bundle!r}; there are demos for: {', '.join(recipes)}")
    return REPO / "bundles" / bundle, yaml.safe_load(recipes[bundle].read_text())


def _file(pattern: str) -> Path:
    """The first file of `pattern`, whose last part may hold wildcards."""
    if not (found := sorted(Path(pattern).parent.glob(Path(pattern).name))):
        raise FileNotFoundError(f"no file {pattern}")
    return found[0]


def _duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
