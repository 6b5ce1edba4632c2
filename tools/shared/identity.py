"""Which run a training state is of, by settings and cases: another one is rejected, a finished one is left alone."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.bundle import ConfigWorkflow

from .locks import hold, release
from .option_types import PATHS
from .record import file_digest, running_workflow
from .validation import Case, InputError, case_name
from .weights import read_tensors

__all__ = ["RunIdentity", "differences", "digests_of", "files_of", "settings_of"]

Beside = Callable[[str], Mapping[str, Path] | None]

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation")
# What no training differs by: PATHS and what follows. All else does; of files that count, such as cases, the content.
# Files whose content counts, and the ids without which, or with null or false, a training makes no use of them.
USES = {
    "start": ("start",),
    "teacher_weights": ("teacher",),
    "locator_weights": ("locator", "locate"),
    "intensity_file": ("intensity",),
}
NO_FILE, OWN_FILE = "no file", "the weights that the run itself writes"
MACHINE = {"device", "amp", "num_workers", "workers", "pin_memory", "cache_rate", "main_process", "timeout"}
MACHINE |= {"batch_tiles", "batch_voxels"}  # how much is segmented at once
SCORING = {"shifts", "test_time_flips", "structures"}  # how thoroughly a validation looks, and what is scored
LOGS = {"run_name", "experiment_name", "tracking_uri", "is_not_rank0", "save_execute_config"}
LOGS |= {"val_interval", "interval"}
STEPS = {"_meta_", "imports", "initialize", "finalize", "distributed", "run", "training", "identity", "restart"}
STEPS |= {"max_epochs"}
CASES = {"cases", "labelled", "check_cases", "train::dataset::data", "validate::dataset::data"}
IGNORED = PATHS | MACHINE | SCORING | LOGS | STEPS | CASES
HANDLERS = {"CheckpointLoader", "MLFlowHandler", "ProgressBar", "StatsHandler", "TensorBoardStatsHandler"}
HANDLERS |= {"TrainingState", "ValidationHandler"}
GZIP_END = 8  # bytes: CRC-32 and size of the content
SHOWN = 8
LONGEST = 80


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings that shape a training: each id of a config that is not ignored, and its value as JSON.

    Ignored are places of files, the machine (device, mixed precision, processes that load, how much is segmented at
    once), how thoroughly a validation looks, logging and its intervals, the number of epochs, steps and checks, and the
    handlers that only log, load or save. The number of processes that train, between which batches are shared out, is
    among the settings, and where validations steer the learning rate, so is their interval.
    """
    found = {**dict(_leaves(config, "")), "processes": str(idist.get_world_size())}
    if config.get("lr_policy") == "plateau" or "Plateau" in json.dumps(config.get("lr_scheduler"), default=str):
        found["val_interval"] = json.dumps(config.get("val_interval"))
    return found


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    parts = _parts(value)
    if parts is None and place:
        yield place, json.dumps(value, default=lambda item: type(item).__name__)
    for name, item in parts or ():
        inner = f"{place}::{name}" if place else str(name)
        if not {str(name), inner} & IGNORED:
            yield from _leaves(item, inner)


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a mapping or a list holds; `None` of a leaf, which a list of numbers or texts is too."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        return enumerate(item for item in value if not _only_logs(item))
    return None


def _only_logs(handler: Any) -> bool:
    return isinstance(handler, Mapping) and str(handler.get("_target_")).rpartition(".")[2] in HANDLERS


def digests_of(workflow: ConfigWorkflow) -> dict[str, str]:
    """Returns size and SHA-256 of the files beside the cases from which a training starts or learns, by id.

    Raises:
        InputError: when one cannot be read.
    """
    config, found = workflow.parser.config, {}
    for name, uses in USES.items():
        if name in config and all(config.get(use, True) for use in uses):
            place = workflow.parser.get_parsed_content(name)
            if place:
                found[name] = _digest(Path(place), Path(workflow.parser.get_parsed_content("weights")))
    return found


def _digest(path: Path, own: Path) -> str:
    if path.absolute() == own.absolute():
        return OWN_FILE
    try:
        return file_digest(path) if path.is_file() else NO_FILE
    except OSError as error:
        raise InputError([("", str(path), f"cannot be read ({error.strerror})")]) from error


def files_of(splits: Sequence[Sequence[Case]], beside: Beside | None = None) -> dict[str, dict[str, list[str]]]:
    """Returns for training and validation the names of the cases, and of each the names and sizes of its files.

    Of gzipped files also the checksum of the content, with which they end.

    Args:
        splits: cases to train on, and to validate on.
        beside: returns of a case's image the files that are read with it, by sequence.
    """
    return {
        split: {case_name(case): _files(case, beside) for case in cases}
        for split, cases in zip(SPLITS, splits, strict=True)
    }


def _files(case: Case, beside: Beside | None) -> list[str]:
    paths = [Path(value) for key, value in case.items() if key != "case" and isinstance(value, str | Path)]
    with suppress(InputError):  # several files that could be a sequence: check_cases reports them with all else
        paths += (beside(case["image"]) or {}).values() if beside else ()
    every = dict.fromkeys(path.absolute() for path in paths if path.is_file())
    return [f"{path.name} of {path.stat().st_size} bytes{_checksum(path)}" for path in every]


def _checksum(path: Path) -> str:
    if path.suffix != ".gz" or path.stat().st_size < GZIP_END:
        return ""
    with path.open("rb") as file:
        file.seek(-GZIP_END, os.SEEK_END)
        return f", crc32 {int.from_bytes(file.read(4), 'little'):08x}"


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[str]:
    """Returns in what two runs differ, a line for each setting, each file and each kind of change in the cases.

    Args:
        old: fingerprint with `settings`, `files` and `cases`; `None` where a state has none.
        new: the other one.
    """
    if old is None:
        return ["it does not say which run left it, as those of earlier versions do not"]
    before, now = ({**run["settings"], **run.get("files", {})} for run in (old, new))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    lines = [f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}" for name in names]
    for split in SPLITS:
        changes = _changes(old["cases"][split], new["cases"][split])
        lines += [f"{split} cases {kind}: {_listed(sorted(cases))}" for kind, cases in changes.items() if cases]
    return lines


def _changes(was: Mapping[str, Any], is_now: Mapping[str, Any]) -> dict[str, Iterable[str]]:
    return {
        "removed": was.keys() - is_now.keys(),
        "added": is_now.keys() - was.keys(),
        "with other files": [name for name in was.keys() & is_now.keys() if was[name] != is_now[name]],
    }


def _short(value: str | None) -> str:
    text = "not set" if value is None else value
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - SHOWN
    return separator.join([*names[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


class RunIdentity:
    """Tells whether the state in a file is of this run, before anything else is done.

    `check` is a step of a training's list. Who runs the trainer without that list, as MONAI's `MonaiAlgo` does in each
    round of federated learning, has no identity, and the trainer neither reads nor writes a state.

    Args:
        state_file: where `TrainingState` keeps the state.
        splits: cases to train on, and to validate on.
        max_epochs: how many epochs are asked for.
        restart: whether to start again, whatever lies there.
        beside: returns of a case's image the files that are read with it, by sequence.
    """

    def __init__(
        self,
        state_file: str,
        splits: Sequence[Sequence[Case]],
        *,
        max_epochs: int,
        restart: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self.path = Path(state_file)
        self.splits = splits
        self.max_epochs = max_epochs
        self.restart = restart
        self.beside = beside
        self.fingerprint: dict[str, Any] | None = None
        self.starts_new = True
        self.written = [self.path]

    def check(self) -> None:
        """Decides whether to start again, to go on, or, where the run is finished, to do none of the steps that follow.

        From here to the end of the training no other one can write its state and its weights.

        Where the cases are given as a list in the place of an expression, as by MONAI Label, which trains in the same
        folder again and again, another run and a finished one start again. Weights to start from that are gone since
        count as they were.

        Raises:
            InputError: when the file is damaged, or of another run; the message says in what it differs. When another
                training writes the same files, state and weights are one file, or there are fewer cases to validate on
                than processes.
        """
        workflow = running_workflow()
        if workflow is not None and "weights" in workflow.parser:
            self.written = [self.path, Path(workflow.parser.get_parsed_content("weights"))]
        self._check_files_and_processes()
        hold(self.written)
        files = digests_of(workflow) if workflow else {}
        self.fingerprint = {
            "settings": settings_of(workflow.parser.config if workflow else {}),
            "files": files,
            "cases": files_of(self.splits, self.beside),
        }
        if not self.restart and self.path.is_file():
            self._compare(read_tensors(self.path, mmap=True), files, workflow=workflow)

    def _check_files_and_processes(self) -> None:
        if len({path.absolute() for path in self.written}) < len(self.written):
            raise InputError(
                [("", str(self.path), "is to hold the weights and the state: give each a file of its own")]
            )
        processes, scans = idist.get_world_size(), len(self.splits[1])
        if processes > max(scans, 1):
            rule = f"holds {scans} case(s), {processes} processes take one each at least: add cases, or start fewer"
            raise InputError([("", f"the split {SPLITS[1]!r}", rule)])

    def _compare(self, state: dict[str, Any], files: dict[str, str], *, workflow: ConfigWorkflow | None) -> None:
        """Goes on with a state, rejects it or starts again; `files` that are gone become those of the state."""
        files |= _gone(state, files)
        found = differences(state.get("run"), self.fingerprint or {})
        epoch = 0 if found else state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
        finished = epoch >= self.max_epochs
        self.starts_new = (bool(found) or finished) and _gives_cases(workflow)
        if self.starts_new:
            return
        if found:
            rule = "is of another run, which differs in\n    " + _listed(found, "\n    ")
            how = "give this run another ckpt_dir, or start again with --restart true: weights remain as *_previous.pt"
            raise InputError([("", str(self.path), f"{rule}\n  {how}")])
        if finished:
            how = "a larger max_epochs goes on with it, --restart true starts again"
            logger.info("%s: this run is finished after %d epochs, nothing is done; %s", self.path, epoch, how)
            _skip_what_follows(workflow)
            self.release()

    def release(self) -> None:
        """Lets other trainings write the state and the weights: this one is done."""
        release(self.written)


def _gone(state: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, str]:
    """What a state knows of files that are not there any more."""
    known = (state.get("run") or {}).get("files", {})
    return {name: known[name] for name in files if files[name] == NO_FILE and name in known}


def _gives_cases(workflow: ConfigWorkflow | None) -> bool:
    return workflow is not None and isinstance(workflow.parser.get("train::dataset::data"), list)


def _skip_what_follows(workflow: ConfigWorkflow | None) -> None:
    """MONAI runs a list of steps to its end: each gets the result that it would have, none."""
    if workflow is not None:
        for index in range(len(workflow.parser[workflow.run_id])):
            workflow.parser.ref_resolver.resolved_content[f"{workflow.run_id}::{index}"] = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
