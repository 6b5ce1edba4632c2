"""The method on real scans: members, their ensemble, and students with and without soft labels, on ACDC.

`python -m tools.experiments.<this folder>.study --help`
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import fire
import torch

from tools import REPO
from tools.benchmark.report import environment
from tools.demo.cli import run
from tools.demo.data import fingerprint
from tools.demo.stages import Stage
from tools.files import read_table
from tools.shared.files import write_text
from tools.tables import markdown

BUNDLE = REPO / "bundles" / Path(__file__).parent.name
SPLIT = BUNDLE / "configs/split_acdc40.json"
MEMBERS = ("dilated", "resnet", "unet")
# Coarse pixels, narrow networks and short trainings, so that two cores are done in an hour: the same budget for all.
REDUCED: dict[str, Any] = {
    "pixdim": [2.5, 2.5, -1.0],
    "dilated_channels": 16,
    "resnet_channels": 16,
    "unet_channels": [16, 32, 64, 128],
    "receptive_field": 35,
    "dropout": 0.1,
    "frames": ["ED"],
    "hard_loss": "dice",
}
BUDGET: dict[str, Any] = {
    "batch_size": 16,
    "epoch_length": 60,
    "max_epochs": 10,
    "val_interval": 2,
    "learning_rate": 4.0e-3,
}
WINDOWS = {"dilated": 17, "resnet": 32, "unet": 32}


def study(
    data: str,
    output: str,
    *,
    seeds: Sequence[int] = (0, 1),
    result: str | None = None,
    note: str = "",
    **settings: Any,
) -> Path:
    """Train three members, let their ensemble annotate, train their best network with and without its soft labels.

    All trainings have the same number of batches. The best member is the one with the highest Dice on the validation
    patients; the student and its control start from another seed than it. What was finished earlier is not repeated.

    Args:
        data: the forty ACDC patients of `configs/split_acdc40.json`.
        output: folder for weights, soft labels and tables.
        seeds: seeds of the trainings.
        result: JSON file to write; by default `study.json` in OUTPUT.
        note: what a reader must know.
        settings: of all commands, for example --max_epochs 20.

    Returns:
        The JSON file: commands, versions, split, and for each network and score the mean over the test patients, for
        each seed and over seeds.
    """
    commands: list[str] = []
    found: dict[int, Any] = {}
    best: dict[str, str] = {}
    for seed in seeds:
        folder = Path(output) / f"seed{seed}"
        common = {"dataset_dir": data, "split_file": os.path.relpath(SPLIT), "ckpt_dir": str(folder / "models")}
        common |= REDUCED | settings
        training = common | BUDGET | settings
        first = members(folder, common, training=training | {"seed": seed})
        finish(first, folder / "members")
        best[str(seed)] = max(MEMBERS, key=lambda name: summary(folder / f"validation_{name}")["dice"])
        second = students(folder, common, training=training | {"seed": seed + 100}, network=best[str(seed)])
        finish(second, folder / "students")
        names = [*MEMBERS, "ensemble", "labels_alone", "student"]
        found[seed] = {name: summary(folder / f"test_{name}") for name in names}
        commands = commands or [typed(stage) for stage in (*first, *second)]
    device = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record = {
        "note": note,
        "commands": [line.replace(output, "OUTPUT").replace(data, "ACDC") for line in commands],
        "environment": device | {"command": device["command"].replace(output, "OUTPUT").replace(data, "ACDC")},
        "split": json.loads(SPLIT.read_text()),
        "network of the student": best,
        "scores": over_seeds(found),
    }
    path = Path(result) if result else Path(output) / "study.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{table(record['scores'])}\n")
    return path


def finish(plan: Sequence[Stage], name: Path) -> None:
    """Runs commands, unless an earlier call has run them all; an interrupted one is gone on with."""
    done = name.with_suffix(".done")
    if not done.is_file():
        run(plan, name.with_suffix(".json"), version=fingerprint(BUNDLE))
        done.touch()


def members(folder: Path, common: Mapping[str, Any], *, training: Mapping[str, Any]) -> list[Stage]:
    """Returns the commands up to the soft labels: trainings, validations, tests, annotation."""
    plan = []
    for name in MEMBERS:
        stems = ["train", "train_member", "acdc", f"member_{name}"]
        settings = {**training, "window": WINDOWS[name], "output_dir": str(folder / f"logs_{name}")}
        plan.append(stage(f"train the member {name}", "training", stems=stems, settings=settings))
        for subset in ("validation", "test"):
            settings = {**common, "subset": subset, "output_dir": str(folder / f"{subset}_{name}")}
            stems = ["train", "train_member", "evaluate", "acdc", f"member_{name}"]
            plan.append(stage(f"{subset} of {name}", "evaluating", stems=stems, settings=settings))
    common = {**common, "names": [f"{name}_dice" for name in MEMBERS]}
    settings = {**common, "output_dir": str(folder / "test_ensemble")}
    plan.append(
        stage("test of the ensemble", "evaluating", stems=["train", "evaluate", "ensemble", "acdc"], settings=settings)
    )
    settings = {**common, "output_dir": str(folder / "soft_labels")}
    return [
        *plan,
        stage("soft labels", "annotating", stems=["inference", "ensemble", "annotate", "acdc"], settings=settings),
    ]


def students(folder: Path, common: Mapping[str, Any], *, training: Mapping[str, Any], network: str) -> list[Stage]:
    """Returns the commands that train and test one network with and without soft labels."""
    plan = []
    soft = {"soft_labels": str(folder / "soft_labels")}
    for name, base, more in (("labels_alone", ["train", "train_member"], {}), ("student", ["train"], soft)):
        files = {"weights": str(folder / f"models/{name}.pt"), "state_file": str(folder / f"models/{name}_state.pt")}
        settings = {**training, "window": WINDOWS[network], **files, **more, "output_dir": str(folder / f"logs_{name}")}
        plan.append(stage(f"train {name}", "training", stems=[*base, "acdc", f"member_{network}"], settings=settings))
        settings = {**common, "weights": files["weights"], "output_dir": str(folder / f"test_{name}")}
        stems = ["train", "evaluate", "acdc", f"member_{network}"]
        plan.append(stage(f"test of {name}", "evaluating", stems=stems, settings=settings))
    return plan


def stage(title: str, run_id: str, *, stems: Sequence[str], settings: Mapping[str, Any]) -> Stage:
    """Returns a command of the bundle."""
    files = [os.path.relpath(BUNDLE / f"configs/{stem}.yaml") for stem in stems]
    words = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return Stage(title, words)


def typed(command: Stage) -> str:
    """Returns a command as one types it where Python is called python."""
    return f"python {command.shown().partition(' ')[2]}"


def summary(folder: Path) -> dict[str, float]:
    """Returns the means of an evaluation by score."""
    rows = read_table(folder / "metrics_summary.csv", columns=("score", "mean"))
    return {row["score"]: round(float(row["mean"]), 4) for row in rows}


def over_seeds(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns for each network and score the mean over seeds and the value of each."""
    names = list(next(iter(found.values())))
    result: dict[str, Any] = {}
    for name in names:
        scores = list(next(iter(found.values()))[name])
        values = {score: {str(seed): by[name][score] for seed, by in found.items()} for score in scores}
        result[name] = {score: {"mean": round(mean(v.values()), 4), "seeds": v} for score, v in values.items()}
    return result


def table(scores: Mapping[str, Any]) -> str:
    """Lays out means as a Markdown table: a row for each network, a column for each structure's Dice."""
    columns = [score for score in next(iter(scores.values())) if score.startswith("dice")]
    rows = [[name, *(f"{found[score]['mean']:.3f}" for score in columns)] for name, found in scores.items()]
    return markdown(["", *columns], rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(study, serialize=lambda _: None)
