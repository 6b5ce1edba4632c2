"""The demo of this bundle over seeds; `python -m tools.experiments.<this folder>.study --help`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire

from tools.experiments import study as studies

BUNDLE = Path(__file__).parent.name


def study(
    output: str, *, seeds: Sequence[int] = (0, 1, 2), workers: int = 3, result: str | None = None, **settings: Any
) -> Path:
    """Train teachers and student on phantoms, once per seed, and score them and the ensemble on held-out ones.

    The ResUNet among the teachers is the student's own network, trained for as many steps on the labels alone: what the
    student gains on it is the effect of the method.

    Args:
        output: folder for phantoms, weights and tables.
        seeds: seeds.
        workers: how many seeds run side by side, a thread each.
        result: JSON file to write; by default `study.json` in OUTPUT.
        settings: of all stages, for example --max_epochs 10.

    Returns:
        The JSON file, see `tools.experiments.study`.
    """
    return studies.study(
        BUNDLE,
        output,
        ours="student",
        others=["resunet", "cascaded", "unet", "ensemble"],
        score="dice",
        seeds=seeds,
        workers=workers,
        result=result,
        settings=settings,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(study, serialize=lambda _: None)
