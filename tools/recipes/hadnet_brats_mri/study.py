"""The demo of this bundle over seeds, with a control; `python -m tools.recipes.<this folder>.study --help`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import fire
import torch
import yaml

from tools import REPO
from tools.benchmark.report import environment
from tools.demo import collect, fingerprint, prepare_data, run, stages
from tools.files import replacing
from tools.tables import Rows

BUNDLE = Path(__file__).parent.name
FOLDER = REPO / "bundles" / BUNDLE
CONTROL = {"supervised": ["supervised.yaml"]}  # as long a training, but without what the discriminator says
SCORES = ("dice_ET", "dice_TC", "dice_WT", "dice")


def study(
    output: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    control: bool = True,
    workers: int = 3,
    result: str | None = None,
    **settings: Any,
) -> Path:
    """Train teacher, student, HAD-Net and its control on phantoms, once per seed, and score them on unseen ones.

    Every seed has training phantoms, initial weights and an order of its own; the unseen phantoms are the same. All
    settings are those of the demo. An interrupted study continues where it stopped when it is called again.

    Args:
        output: folder for phantoms, weights and tables.
        seeds: seeds.
        control: whether to train the control, which takes as long as HAD-Net.
        workers: how many seeds run side by side, a thread each.
        result: JSON file to write; by default `study.json` in OUTPUT.
        settings: of all stages, for example --max_epochs 10.

    Returns:
        The JSON file: commands, versions, for each method and score its mean over the unseen phantoms, for each seed
        and over seeds, and what HAD-Net gains on the student and on the control.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    recipe = yaml.safe_load(Path(__file__).with_name("demo.yaml").read_text(encoding="utf-8"))
    recipe["compare"] |= CONTROL if control else {}
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(partial(_run, recipe, Path(output), settings), seeds))
    scores = _scores({seed: rows for seed, (_, rows) in zip(seeds, found, strict=True)})
    device = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record = {
        "commands": [command.replace(output, "OUTPUT") for command in found[0][0]],
        "seeds": list(seeds),
        "environment": device | {"command": device["command"].replace(output, "OUTPUT")},
        "scores": scores,
        "gain on ET": {other: _gain(scores, other) for other in ("student", *CONTROL) if other in scores},
    }
    path = Path(result) if result else Path(output) / "study.json"
    with replacing(path) as partial_file:
        partial_file.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{table(scores)}\n")
    return path


def _run(recipe: Mapping[str, Any], root: Path, settings: Mapping[str, Any], seed: int) -> tuple[list[str], Rows]:
    """Runs the stages of one seed; returns the commands, and a row for each method and unseen phantom."""
    scenario = {**recipe["phantoms"], "training": {**recipe["phantoms"]["training"], "seed": 100 + seed}}
    seeded = {**recipe, "phantoms": scenario}
    places = prepare_data(BUNDLE, seeded, data=None, output=root / f"seed{seed}")
    plan = stages(seeded, FOLDER, places=places, scenario=scenario, overrides={"seed": seed, **settings})
    run(plan, root / f"seed{seed}/finished.json", version=fingerprint(FOLDER))
    return [stage.shown() for stage in plan], collect(seeded, places)


def _scores(rows: Mapping[int, Rows]) -> dict[str, dict[str, Any]]:
    """Means over cases by method and score: `mean` over the seeds, and each seed's."""
    methods = list(dict.fromkeys(row["method"] for found in rows.values() for row in found))
    return {
        method: {
            score: _over_seeds(
                {seed: mean(float(r[score]) for r in found if r["method"] == method) for seed, found in rows.items()}
            )
            for score in SCORES
        }
        for method in methods
    }


def _gain(scores: Mapping[str, Any], other: str) -> dict[str, Any]:
    ours, theirs = (scores[name]["dice_ET"]["seeds"] for name in ("HAD-Net", other))
    return _over_seeds({seed: ours[seed] - theirs[seed] for seed in ours})


def _over_seeds(by_seed: Mapping[Any, float]) -> dict[str, Any]:
    return {
        "mean": round(mean(by_seed.values()), 4),
        "seeds": {str(seed): round(value, 4) for seed, value in by_seed.items()},
    }


def table(scores: Mapping[str, Any]) -> str:
    """Lays out mean Dice as a Markdown table: a row for each method, a column for each score, seeds in brackets."""
    lines = ["| | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
    for method, by_score in scores.items():
        cells = [
            f"{found['mean']:.3f} ({', '.join(f'{value:.3f}' for value in found['seeds'].values())})"
            for found in by_score.values()
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(study, serialize=lambda _: None)
