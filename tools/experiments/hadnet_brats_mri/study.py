"""The demo of this bundle over seeds, with a control; `python -m tools.experiments.<this folder>.study --help`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire

from tools.experiments import study as studies

BUNDLE = Path(__file__).parent.name
CONTROL = {"supervised": ["supervised.yaml"]}  # as long a training, but without what the discriminator says


def study(
    output: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    control: bool = True,
    workers: int = 3,
    result: str | None = None,
    **settings: Any,
) -> Path:
    """Train teacher, student, HAD-Net and its control on phantoms, once per seed, and score them on held-out ones.

    Args:
        output: folder for phantoms, weights and tables.
        seeds: seeds.
        control: whether to train the control, which takes as long as HAD-Net.
        workers: how many seeds run side by side, a thread each.
        result: JSON file to write; by default `study.json` in OUTPUT.
        settings: of all stages, for example --max_epochs 10.

    Returns:
        The JSON file, see `tools.experiments.study`.
    """
    return studies.study(
        BUNDLE,
        output,
        ours="HAD-Net",
        others=["student", *CONTROL],
        score="dice_ET",
        variants=CONTROL if control else None,
        seeds=seeds,
        workers=workers,
        result=result,
        settings=settings,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(study, serialize=lambda _: None)
