"""The tables that runs write: scores with their summary, volumes of structures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from .evaluation import CaseTable, Row, voxel_volume
from .files import write_table

__all__ = ["CaseReport", "ScoreTable", "statistics", "summarise"]

LOWER_IS_BETTER = ("hd", "asd")


class ScoreTable(CaseTable):
    """Handler of an evaluator: a table with the scores of every case, and `<name>_summary.csv` with their `summarise`.

    The summary has a column `failed` more, how many cases could not be scored. The means go into
    `engine.state.metrics`; a `StatsHandler` that follows shows them. `holds` returns whether the reference holds each
    structure, by name.

    Args:
        path: CSV of the cases, written when the run ends.

    Attributes:
        lower_is_better: how the names of scores begin whose lowest is the best.
    """

    lower_is_better: tuple[str, ...] = LOWER_IS_BETTER

    def summary(self) -> list[Row]:
        """Returns the summary of the cases that were scored."""
        lines = summarise(self.rows, self.held, lower_is_better=self.lower_is_better)
        lines = lines or [{"score": "dice"} | statistics([], [])]
        return [line | {"failed": len(self.failed)} for line in lines]

    def write(self, engine: Engine) -> None:
        """Writes both tables."""
        super().write(engine)
        summary = self.summary()
        sets = {line.get("set") for line in summary}
        for line in summary:
            name = f"{line['set']}/{line['score']}" if len(sets) > 1 else line["score"]
            engine.state.metrics[name] = line["mean"]
        write_table(self.path.with_name(f"{self.path.stem}_summary.csv"), summary)


def summarise(
    rows: Sequence[Row], held: Sequence[Mapping[str, Any]], *, lower_is_better: tuple[str, ...] = LOWER_IS_BETTER
) -> list[Row]:
    """Returns `score` and its `statistics` for each score of some cases; a score is what has floating-point values.

    Args:
        rows: those of the cases.
        held: for every case, whether its reference holds a structure, by name. Scores called `<score>_<structure>` are
            of this structure, others of all.
        lower_is_better: how the names of scores begin whose lowest is the best.
    """
    summary = []
    for name in (name for name, value in (rows[0] if rows else {}).items() if isinstance(value, float)):
        structure = max((each for each in held[0] if name.endswith(f"_{each}")), key=len, default=None)
        present = [structure is None or bool(case[structure]) for case in held]
        found = statistics([row[name] for row in rows], present, lower_is_better=name.startswith(lower_is_better))
        summary.append({"score": name} | found)
    return summary


def statistics(values: Sequence[float], present: Sequence[bool], *, lower_is_better: bool = False) -> Row:
    """Returns statistics of a score, NaN where there are none.

    Args:
        values: of the cases.
        present: whether the reference of each holds what is scored.
        lower_is_better: whether the lowest value is the best.

    Returns:
        `cases`, how many have a finite value, and over these `mean`, `sd` (of the population), `median`, `worst` and
        `best`; `infinite`, how many have an infinite one; and of the cases whose reference holds what is scored
        `present`, how many have a finite value, and their `mean_present`.
    """
    every = np.array(values, dtype=float)
    finite = np.isfinite(every)
    known, held = every[finite], every[finite & np.array(present, dtype=bool)]
    found = dict.fromkeys(("mean", "sd", "median", "worst", "best"), math.nan)
    if known.size:
        worst, best = sorted((known.min(), known.max()), reverse=lower_is_better)
        found = {"mean": known.mean(), "sd": known.std(), "median": np.median(known), "worst": worst, "best": best}
    counts = {"infinite": int(np.isinf(every).sum()), "present": held.size}
    mean_present = float(held.mean()) if held.size else math.nan
    return {"cases": known.size, **{k: float(v) for k, v in found.items()}, **counts, "mean_present": mean_present}


class CaseReport(CaseTable):
    """Handler of an inference run: a table with the volume of every structure in ml, and the file of every scan.

    Args:
        path: CSV with `case`, `<structure>_ml`, the file `image` and `error`, written when the run ends.
        structures: names, and the values of the label maps that make up each.
    """

    named = ("case", "image")

    def __init__(self, path: str, *, structures: Mapping[str, Sequence[int]]) -> None:
        super().__init__(path)
        self.structures = {name: torch.tensor(values) for name, values in structures.items()}

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns volumes and file of one scan, whose label map is `pred`."""
        pred: MetaTensor = item["pred"]
        voxel = voxel_volume(pred) / 1000
        counts = {name: int(torch.isin(pred.cpu(), values).sum()) for name, values in self.structures.items()}
        volumes = {f"{name}_ml": round(count * voxel, 2) for name, count in counts.items()}
        return {"case": item["case"], **volumes, "image": pred.meta.get("source", pred.meta["filename_or_obj"])}
