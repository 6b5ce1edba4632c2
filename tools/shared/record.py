"""A run's record of itself, as JSON; what MONAI's MLflow handler lacks; digests and copies of files."""

from __future__ import annotations

import filecmp
import hashlib
import inspect
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from traceback import walk_stack
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.handlers import MLFlowHandler

from .files import atomic_write, write_text

__all__ = ["file_digest", "keep", "record_run", "running_workflow"]

PACKAGES = ("monai", "torch", "numpy", "pytorch-ignite")
PATHS = ("dataset_dir", "state_file", "weights")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#'\"]*@")


def record_run(
    output_dir: str, engine: Engine, *, handlers: Sequence[Any] = (), cases: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes `run_<run id>_<time>.json` into `output_dir`; once `engine` is done, the time goes into it too.

    So do, under `failed`, the cases that a `CaseEvaluator` could not do, with the reasons.

    It is a step of a config's run list, the last one before the engine runs. The config as executed, with what the
    command line changed, is taken from the workflow that runs this step. Only the first of several processes writes.
    Names and passwords in addresses (`https://name:password@host`) are left out, nothing else is.

    The learning rate at the start of every epoch becomes a metric of `engine`, so that every log has it.

    Args:
        output_dir: folder of the run's results.
        engine: what is about to run.
        handlers: those of `engine`; MLflow's among them gets the record as an artifact, and the settings as parameters.
        cases: what the engine works on.
    """
    if getattr(engine, "optimizer", None) is not None:
        engine.add_event_handler(Events.EPOCH_STARTED, _note_learning_rate)
    if idist.get_rank() > 0:
        return
    workflow = running_workflow()
    config: dict[str, Any] = dict(workflow.parser.config) if workflow else {}
    meta = config.pop("_meta_", {})
    started = datetime.now(timezone.utc)
    run_id = workflow.run_id if workflow else "run"
    path = Path(output_dir, f"run_{run_id}_{started:%Y%m%d_%H%M%S_%f}.json")
    record = {
        "bundle": {"name": Path(__file__).resolve().parents[2].name, "version": meta.get("version")},
        "run_id": run_id,
        "started": started.isoformat(),
        "finished": None,
        "seconds": None,
        "command": _command(),
        "directory": str(Path.cwd()),
        "process": os.getpid(),
        "device": _device(engine),
        "processes": idist.get_world_size(),
        "versions": _versions([*PACKAGES, *meta.get("required_packages_version", {})]),
        "cases": list(cases),
        "paths": _paths(workflow),
        "config": config,
    }
    _write(record, path)

    def finish() -> None:
        ended = datetime.now(timezone.utc)
        times = {"finished": ended.isoformat(), "seconds": (ended - started).total_seconds()}
        failed = {"failed": engine.state.failures} if hasattr(engine.state, "failures") else {}
        _write({**record, **times, **failed}, path)

    engine.add_event_handler(Events.COMPLETED, finish)
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            _complete_tracking(handler, engine, artifact=path, settings=_settings(config))


def running_workflow() -> ConfigWorkflow | None:
    """Returns the workflow whose step this is: looked for among the callers, as MONAI hands it to no expression."""
    owners = (frame.f_locals.get("self") for frame, _ in walk_stack(inspect.currentframe()))
    return next((owner for owner in owners if isinstance(owner, ConfigWorkflow)), None)


def file_digest(path: Path) -> str:
    """Returns the size of a file and the SHA-256 of its content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return f"{path.stat().st_size} bytes, sha256 {digest.hexdigest()}"


def keep(path: Path) -> Path:
    """Copies a file to the first `<name>[_<number>]_previous.pt` that is free, unless one before it is the same.

    Returns:
        The copy.
    """
    for number in count(1):
        kept = path.with_name(f"{path.stem}{f'_{number}' if number > 1 else ''}_previous.pt")
        if not kept.exists():
            with atomic_write(kept) as partial:
                shutil.copyfile(path, partial)
        if filecmp.cmp(path, kept, shallow=False):
            break
    return kept


def _paths(workflow: ConfigWorkflow | None) -> dict[str, str]:
    """Those of the settings that are places of files, without references and expressions."""
    if workflow is None:
        return {}
    parser = workflow.parser
    values = {name: parser.get_parsed_content(name) for name in PATHS if name in parser.config}
    return {name: str(value) for name, value in values.items() if value is not None}


def _write(record: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(record, indent=1, default=str)  # names that are no UTF-8 stay readable as escapes
    write_text(path, _CREDENTIALS.sub("", text) + "\n")


def _command() -> str:
    """The command line of this process, as it is typed."""
    program, *words = sys.argv
    module = Path(program)
    typed = ["python", "-m", "monai.bundle"] if module.parts[-3:] == ("monai", "bundle", "__main__.py") else [program]
    return " ".join(map(_quoted, [*typed, *words]))


def _quoted(word: str) -> str:
    """A word quoted for a shell, legibly where it holds texts of Python."""
    legible = "'" in word and not set(word) & set('"$`!\\')
    return f'"{word}"' if legible else shlex.quote(word)


def _device(engine: Engine) -> str:
    device = torch.device(getattr(engine.state, "device", "cpu"))
    return f"{device} ({torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()})"


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are there."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _note_learning_rate(engine: Engine) -> None:
    engine.state.metrics["learning_rate"] = engine.optimizer.param_groups[0]["lr"]


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The config's numbers, texts and flat lists, without what refers to other items or is an expression."""

    def plain(value: Any) -> bool:
        if isinstance(value, str):
            return not value.startswith(("$", "@", "%"))
        return isinstance(value, bool | int | float)

    chosen = {
        name: value
        for name, value in config.items()
        if plain(value) or (isinstance(value, list) and all(map(plain, value)))
    }
    return {name: _CREDENTIALS.sub("", str(value))[:500] for name, value in chosen.items()}


def _complete_tracking(tracker: MLFlowHandler, engine: Engine, *, artifact: Path, settings: Mapping[str, str]) -> None:
    """Gives MONAI's tracker what it leaves out: the record, the settings, and an end to the run of an evaluation.

    It loses the loss of single steps, which MONAI logs under the name of an epoch's mean, and from lists only.
    """
    if engine.has_event_handler(tracker.iteration_completed, Events.ITERATION_COMPLETED):
        engine.remove_event_handler(tracker.iteration_completed, Events.ITERATION_COMPLETED)

    def log_settings() -> None:
        run_id = tracker.cur_run.info.run_id
        known = tracker.client.get_run(run_id).data.params  # a run that goes on keeps them, MLflow lets none change
        for name, value in settings.items():
            if name not in known:
                tracker.client.log_param(run_id, name, value)

    def close() -> None:
        tracker.client.log_artifact(tracker.cur_run.info.run_id, str(artifact))
        tracker.close()

    engine.add_event_handler(Events.STARTED, log_settings)
    if engine.has_event_handler(tracker.close, Events.COMPLETED):
        engine.remove_event_handler(tracker.close, Events.COMPLETED)
    engine.add_event_handler(Events.COMPLETED, close)
