"""Runs over cases of which some fail: each ends in one row of the table, its result or its error."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

from .files import write_table
from .validation import Case, InputError, case_name
from .volumes import first_cause, reason
from .writing import check_outputs, layouts_of

__all__ = ["CaseError", "CaseEvaluator", "CaseLoader", "CaseTable", "CaseTransforms", "Row", "voxel_volume"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NAMED = 10  # failed cases in a message


class CaseError(InputError):
    """Something is wrong with some of the cases; the message says with which and what."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)


def reason_of(error: BaseException) -> str:
    """Returns what was wrong, in one line: see `volumes.reason`; a `CaseError` says it all."""
    first = first_cause(error, until=InputError)
    return " ".join(str(first).split()) if isinstance(first, CaseError) else reason(first, until=InputError)


def voxel_volume(volume: MetaTensor) -> float:
    """Returns the volume of a voxel of the scan in mm³, whatever the angles between its axes."""
    affine = torch.as_tensor(volume.meta.get("original_affine", volume.affine))
    return abs(float(torch.linalg.det(affine[:3, :3].double())))


class CaseTransforms(Compose):
    """`Compose` whose errors name the case; they end a training."""

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        """Transforms a case.

        Raises:
            CaseError: when a transform fails.
        """
        try:
            return super().__call__(input_, *args, **kwargs)
        except Exception as error:
            if isinstance(first := first_cause(error, until=InputError), CaseError):  # of transforms within these
                raise first from None
            logger.debug("Case %s", case_name(input_), exc_info=error)
            raise CaseError(f"case {case_name(input_)}: {reason_of(error)}") from None


class CaseLoader(DataLoader):
    """Loads the next case while one is worked on; a case that fails comes as `{"error": [reason]}`.

    Unlike MONAI's `ThreadDataLoader`, whose thread ends silently with the first error.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yields every case as a batch."""
        batches = super().__iter__()

        def load() -> Any:
            try:
                return next(batches, None)
            except Exception as error:
                logger.debug("A case cannot be loaded", exc_info=error)
                return {"error": [reason_of(error)]}

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(load)
            for _ in range(len(self)):
                batch = ahead.result()
                ahead = pool.submit(load)
                yield batch


class CaseEvaluator(SupervisedEvaluator):
    """Evaluator of a data set with its cases in `data`, one to a batch, that goes on when one fails.

    A failed case has no output for handlers; `state.failures` has its name and what was wrong. What an earlier run has
    left of it is set aside, see `writing.ScanLayout.set_aside`.

    Args:
        args: those of MONAI's evaluator.
        kwargs: likewise.

    Raises:
        InputError: when two cases would have the same files, see `writing.check_outputs`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cases: list[Case] = self.data_loader.dataset.data
        self.state.failures = {}
        self.layouts = layouts_of(kwargs.get("postprocessing"))
        check_outputs(self.cases, kwargs.get("postprocessing"))

    def fail(self, error: BaseException) -> None:
        """Notes that the case of this iteration has failed."""
        name, what = case_name(self.cases[self.state.iteration - 1]), reason_of(error)
        logger.warning("Case %s failed: %s", name, what)
        logger.debug("Case %s", name, exc_info=error)
        self.state.failures[name] = what

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        try:
            if "error" in batchdata:
                raise CaseError(batchdata["error"][0])
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self.fail(error)
            self._set_aside()
        self.state.batch = []
        return []

    def _set_aside(self) -> None:
        for layout in self.layouts:
            try:
                layout.set_aside(self.cases[self.state.iteration - 1])
            except OSError as error:
                logger.warning("A result of an earlier run stays: %s", reason_of(error))

    def run(self, global_epoch: int = 1) -> None:
        """Works on all cases.

        Raises:
            CaseError: when all handlers are done, if cases have failed; when a handler cannot write its file.
        """
        self.state.failures.clear()
        try:
            super().run(global_epoch)
        except OSError as error:
            raise CaseError(f"the results cannot be written: {reason_of(error)}") from None
        if failures := list(self.state.failures.items()):
            named = [f"{name} ({what})" for name, what in failures[:NAMED]] + ["..."] * (len(failures) > NAMED)
            raise CaseError(f"{len(failures)} of {len(self.cases)} cases failed: {', '.join(named)}")


class CaseTable:
    """Handler of an evaluator: a table with a row for each case, written when the run ends.

    Its last column is `error`, empty where all went well.

    Args:
        path: CSV.

    Attributes:
        named: entries of a case that are in its row even if it fails.
        rows: those of the cases that did not fail.
        held: what `holds` returned of the same cases.
        failed: rows of the cases that did, once the table is written.
    """

    named: tuple[str, ...] = ("case",)

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.clear()

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator whose batches are lists of cases, and whose output is a list of their results."""
        events = {Events.STARTED: self.clear, Events.ITERATION_COMPLETED: self.add, Events.EPOCH_COMPLETED: self.write}
        for event, reaction in events.items():
            engine.add_event_handler(event, reaction)

    def clear(self) -> None:
        """Forgets the rows of an earlier run."""
        self.rows: list[Row] = []
        self.held: list[Any] = []
        self.failed: list[Row] = []

    def row(self, item: Mapping[str, Any]) -> Row:
        """Returns the row of a case, from the entries of its batch and its output."""
        raise NotImplementedError

    def holds(self, item: Mapping[str, Any]) -> Any:
        """Returns what else is to be known of a case when all are there, for example what its reference holds."""

    def add(self, engine: Engine) -> None:
        """Adds the cases of one iteration; one that cannot be added has failed."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            try:
                row, held = self.row({**case, **output}), self.holds({**case, **output})
            except Exception as error:
                if not isinstance(engine, CaseEvaluator):
                    raise
                engine.fail(error)
            else:
                self.rows.append(row)
                self.held.append(held)

    def write(self, engine: Engine) -> None:
        """Writes the table; of what other handlers made of a case that has failed, nothing is in it."""
        failures: dict[str, str] = getattr(engine.state, "failures", {})
        kept = [pair for pair in zip(self.rows, self.held, strict=True) if pair[0]["case"] not in failures]
        self.rows, self.held = [row for row, _ in kept], [held for _, held in kept]
        self.failed = [
            {name: case[name] for name in self.named} | {"error": failures[case_name(case)]}
            for case in getattr(engine, "cases", [])
            if case_name(case) in failures
        ]
        write_table(self.path, [row | {"error": ""} for row in self.rows] + self.failed)
