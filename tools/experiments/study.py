"""The demo of a bundle over several seeds: what a method gains, with its spread."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml

from tools import REPO
from tools.benchmark.report import environment
from tools.demo.cli import collect, run
from tools.demo.data import fingerprint, prepare_data
from tools.demo.stages import stages
from tools.demo.tables import Rows
from tools.shared.files import write_text
from tools.tables import markdown

Scores = dict[str, dict[str, Any]]


def study(
    bundle: str,
    output: str,
    *,
    ours: str,
    others: Sequence[str],
    score: str,
    variants: Mapping[str, Sequence[str]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    workers: int = 3,
    result: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Runs the demo of a bundle on phantoms once per seed, and scores every variant on the held-out ones.

    Every seed has training phantoms, initial weights and an order of its own; the held-out phantoms are the same. An
    interrupted study continues where it stopped when it is called again.

    Args:
        bundle: name of the bundle.
        output: folder for phantoms, weights and tables.
        ours: the variant of the demo whose gain is of interest.
        others: variants that it is compared with, if there are any.
        score: column of the tables in which it is compared.
        variants: further variants, with the config files that each adds.
        seeds: seeds.
        workers: how many seeds run side by side, a thread each.
        result: JSON file to write; by default `study.json` in `output`.
        settings: of all stages.

    Returns:
        The JSON file: commands, versions, for each variant and score its mean over the held-out phantoms, for each seed
        and over seeds, and what `ours` gains on the others.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    recipe = yaml.safe_load((REPO / "tools/per_bundle" / bundle / "demo.yaml").read_text(encoding="utf-8"))
    recipe["compare"] |= variants or {}
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(partial(_run, bundle, recipe, Path(output), settings or {}), seeds))
    scores = _scores({seed: rows for seed, (_, rows) in zip(seeds, found, strict=True)}, recipe["table"]["scores"])
    device = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record = {
        "commands": [command.replace(output, "OUTPUT") for command in found[0][0]],
        "seeds": list(seeds),
        "environment": device | {"command": device["command"].replace(output, "OUTPUT")},
        "scores": scores,
        f"gain of {ours} in {score}": {name: _gain(scores, score, ours, name) for name in others if name in scores},
    }
    path = Path(result) if result else Path(output) / "study.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    for seed in seeds:
        Path(output, f"seed{seed}/finished.json").unlink(missing_ok=True)
    sys.stdout.write(f"{table(scores)}\n")
    return path


def _run(
    bundle: str, recipe: Mapping[str, Any], root: Path, settings: Mapping[str, Any], seed: int
) -> tuple[list[str], Rows]:
    """Runs the stages of one seed; returns the commands, and a row for each variant and held-out phantom."""
    folder = REPO / "bundles" / bundle
    scenario = {**recipe["phantoms"], "training": {**recipe["phantoms"]["training"], "seed": 100 + seed}}
    seeded = {**recipe, "phantoms": scenario}
    places = prepare_data(bundle, seeded, data=None, output=root / f"seed{seed}")
    plan = stages(seeded, folder, places=places, scenario=scenario, overrides={"seed": seed, **settings})
    run(plan, root / f"seed{seed}/finished.json", version=fingerprint(folder))
    return [stage.shown() for stage in plan], collect(seeded, places)


def _scores(rows: Mapping[int, Rows], names: Sequence[str]) -> Scores:
    """Means over cases by variant and score: `mean` over the seeds, and each seed's."""
    methods = list(dict.fromkeys(row["method"] for found in rows.values() for row in found))
    return {
        method: {
            name: _over_seeds(
                {seed: mean(float(r[name]) for r in found if r["method"] == method) for seed, found in rows.items()}
            )
            for name in names
        }
        for method in methods
    }


def _gain(scores: Scores, score: str, ours: str, other: str) -> dict[str, Any]:
    mine, theirs = (scores[name][score]["seeds"] for name in (ours, other))
    return _over_seeds({seed: mine[seed] - theirs[seed] for seed in mine})


def _over_seeds(by_seed: Mapping[Any, float]) -> dict[str, Any]:
    return {
        "mean": round(mean(by_seed.values()), 4),
        "seeds": {str(seed): round(value, 4) for seed, value in by_seed.items()},
    }


def table(scores: Scores) -> str:
    """Lays out means as a Markdown table: a row for each variant, a column for each score, seeds in brackets."""
    columns = list(next(iter(scores.values())))

    def cell(found: Mapping[str, Any]) -> str:
        return f"{found['mean']:.3f} ({', '.join(f'{value:.3f}' for value in found['seeds'].values())})"

    return markdown(["", *columns], [[method, *map(cell, by_score.values())] for method, by_score in scores.items()])
