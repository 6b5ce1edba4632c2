"""Standard against cooperative training on real scans; `python -m tools.experiments.<this folder>.study --help`."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import fire
import torch

from tools import REPO
from tools.benchmark.report import environment
from tools.files import read_table
from tools.shared.files import write_text
from tools.tables import markdown

logger = logging.getLogger(__name__)

CONFIGS = REPO / "bundles" / Path(__file__).parent.name / "configs"
METHODS: dict[str, tuple[str, ...]] = {"standard": ("standard_training",), "cooperative": ()}
CORRUPTIONS = ("RandomBias", "RandomGhosting", "RandomMotion", "RandomSpike")
FOREIGN = "Sunnybrook"
THINKING = {"fast": 0, "slow": 1}  # passes through the slow-thinking network


class Step(NamedTuple):
    """A command, and the file that it writes when it has ended well."""

    command: list[str]
    product: Path


def study(
    data: str,
    output: str,
    *,
    sunnybrook: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    draws: int = 3,
    overlays: Sequence[str] = ("reduced",),
    result: str | None = None,
    note: str = "",
    **settings: Any,
) -> Path:
    """Train both methods on the ten patients of each split, test them on clean, corrupted and foreign scans.

    What an earlier call finished is not repeated; an interrupted training goes on from its last epoch.

    Args:
        data: the forty ACDC patients of `configs/split_acdc40_seed*.json`.
        output: folder for corrupted scans, weights and tables.
        sunnybrook: folder with `images/*.png` and `labels/*.png`, or none.
        seeds: splits, and seeds of the trainings.
        draws: corrupted versions of every volume and corruption.
        overlays: of `train.yaml`, for trainings and tests.
        result: JSON file to write; by default `study.json` in OUTPUT.
        note: what a reader must know.
        settings: of the trainings, for example --max_epochs 10.

    Returns:
        The JSON file: commands, versions, splits, and for each method, way of thinking and test set the means of the
        scores over the cases, for each seed and over seeds.
    """
    root = Path(output)
    foreign = [] if sunnybrook is None else [_foreign(sunnybrook, root)]
    steps = [_corruption(data, root, draws=draws), *foreign]
    for seed in seeds:
        for method, own in METHODS.items():
            stems = [*own, *overlays]
            steps.append(_training(root, method, overlays=stems, data=data, seed=seed, settings=settings))
            steps += _tests(root, method, overlays=stems, data=data, seed=seed, foreign=bool(foreign))
    for number, step in enumerate(steps, 1):
        _run(step, f"[{number}/{len(steps)}]")
    places = {data: "ACDC", output: "OUTPUT"} | dict.fromkeys(filter(None, [sunnybrook]), "SUNNYBROOK")
    device = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record: dict[str, Any] = {
        "note": note,
        "commands": [_replaced(shlex.join(["python", *step.command[1:]]), places) for step in steps],
        "environment": device | {"command": _replaced(device["command"], places)},
        "splits": {str(seed): json.loads(_split(seed).read_text()) for seed in seeds},
        "scores": {method: _scores(root, method, seeds=seeds) for method in METHODS},
    }
    path = Path(result) if result else root / "study.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{table(record['scores'])}\n")
    return path


def _split(seed: int) -> Path:
    return CONFIGS / f"split_acdc40_seed{seed}.json"


def _command(run_id: str, stems: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    files = [os.path.relpath(CONFIGS / f"{stem}.yaml") for stem in stems]
    words = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return words


def _corruption(data: str, root: Path, *, draws: int) -> Step:
    settings = {"dataset_dir": data, "draws": draws, "output_dir": str(root / "corrupted")}
    return Step(_command("corrupt", ["corrupt"], settings), root / "corrupted/finished")


def _foreign(source: str, root: Path) -> Step:
    module = f"{__package__}.sunnybrook"
    return Step([sys.executable, "-m", module, source, str(root / "sunnybrook")], root / "sunnybrook.finished")


def _given(root: Path, method: str, *, data: str, seed: int) -> dict[str, Any]:
    models = str(root / f"{method}_seed{seed}/models")
    return {"dataset_dir": data, "split_file": os.path.relpath(_split(seed)), "seed": seed, "ckpt_dir": models}


def _training(
    root: Path, method: str, *, overlays: Sequence[str], data: str, seed: int, settings: dict[str, Any]
) -> Step:
    folder = root / f"{method}_seed{seed}"
    given = _given(root, method, data=data, seed=seed) | {"output_dir": str(folder / "logs")} | settings
    return Step(_command("training", ["train", *overlays], given), folder / "finished")


def _tests(root: Path, method: str, *, overlays: Sequence[str], data: str, seed: int, foreign: bool) -> Iterator[Step]:
    """Yields the tests of one training: clean and corrupted scans, then those of another scanner, which show the LV."""
    corrupted = {"test_sets": {name: str(root / "corrupted" / name) for name in CORRUPTIONS}}
    other = {"test_sets": {FOREIGN: str(root / "sunnybrook")}, "structures": ["LV"]}
    for thinking, refinements in THINKING.items():
        for name, sets in (("corrupted", corrupted), ("foreign", other))[: 1 + foreign]:
            target = root / f"{method}_seed{seed}" / f"{thinking}_{name}"
            given = _given(root, method, data=data, seed=seed) | sets
            given |= {"refinements": refinements, "output_dir": str(target)}
            command = _command("evaluating", ["train", *overlays, "evaluate"], given)
            yield Step(command, target / "metrics_summary.csv")


def _replaced(line: str, places: Mapping[str, str]) -> str:
    """Puts names in the place of this machine's folders, the longest first."""
    for place in sorted(places, key=len, reverse=True):
        line = line.replace(place, places[place])
    return line


def _run(step: Step, title: str) -> None:
    logger.info("\n%s %s", title, shlex.join(step.command))
    if step.product.is_file():
        logger.info("finished earlier, not repeated")
        return
    subprocess.run(step.command, check=True)
    step.product.touch()


def _scores(root: Path, method: str, *, seeds: Sequence[int]) -> dict[str, Any]:
    """Means over cases by way of thinking, test set and score: `mean` over the seeds, and each seed's."""
    found: dict[str, Any] = {}
    for thinking in THINKING:
        sets: dict[str, dict[str, dict[str, float]]] = {}
        for seed in seeds:
            for row in _rows_of_sets(root / f"{method}_seed{seed}", thinking):
                place = sets.setdefault(row["set"], {}).setdefault(row["score"], {})
                place[str(seed)] = round(float(row["mean"] or "nan"), 4)  # empty: nowhere finite
        sets["corrupted average"] = {
            score: {seed: round(mean(sets[name][score][seed] for name in CORRUPTIONS), 4) for seed in by_seed}
            for score, by_seed in sets[CORRUPTIONS[0]].items()
        }
        found[thinking] = {
            name: {score: {"mean": round(mean(by.values()), 4), "seeds": by} for score, by in scores.items()}
            for name, scores in sets.items()
        }
    return found


def _rows_of_sets(folder: Path, thinking: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a training's summaries that belong to one test set, foreign scans from their own test."""
    for path in sorted(folder.glob(f"{thinking}_*/metrics_summary.csv")):
        foreign = path.parent.name.endswith("foreign")
        yield from (row for row in read_table(path) if row["set"] != "over sets" and (row["set"] == FOREIGN) == foreign)


def table(scores: Mapping[str, Any]) -> str:
    """Lays out the mean Dice of every structure by test set as a Markdown table, a row for each method and thinking."""
    sets = list(scores["standard"]["fast"])
    rows = [
        [f"{method}, {thinking}", *(f"{by_set[name]['dice']['mean']:.3f}" for name in sets)]
        for method, by_thinking in scores.items()
        for thinking, by_set in by_thinking.items()
    ]
    return markdown(["", *sets], rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(study, serialize=lambda _: None)
