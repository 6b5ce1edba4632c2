"""Runs of `monai.bundle.run` by several processes, one after another, then each process runs some alone.

`torchrun --nproc_per_node=N -m tests.support.distributed PLAN`: PLAN is a JSON file with `root` and `package` of a
bundle; `folder`, below which writing is watched; `together` and `alone`, lists of runs. A run has the `arguments` of
`monai.bundle.run` and perhaps `stop`, an epoch after whose state it ends as if it had been killed, or `die`, a way in
which the second process ends in the second epoch. Each process writes `writes_<rank>.json`: the files that it wrote in
each of the runs together.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.func import functional_call

from tools import REPO

SHARES = 2
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={SHARES}"]
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


class Shares(nn.Module):
    """What DDP computes with the batch of all processes, in one: each share of it has its own batch normalisation.

    The statistics that stay are those of the first share, as DDP keeps the first process's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network

    def forward(self, *batch: torch.Tensor, **named: torch.Tensor) -> Any:
        copies = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        outputs = []
        for share in range(SHARES):
            words = {name: tensor[share::SHARES] for name, tensor in named.items()}
            tensors = tuple(tensor[share::SHARES] for tensor in batch)
            outputs.append(functional_call(self.module, copies if share else {}, tensors, words))
        return _together(outputs)


def _together(outputs: Sequence[Any]) -> Any:
    """What the shares give, as one: means of losses, and all else in the order of the batch."""
    if isinstance(outputs[0], Mapping):  # losses
        return {name: torch.stack([output[name] for output in outputs]).mean() for name in outputs[0]}
    if isinstance(outputs[0], Sequence):
        return [_dealt(parts) for parts in zip(*outputs, strict=True)]
    return _dealt(outputs)


def _dealt(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Puts the shares together in the order of the batch."""
    return torch.stack(list(parts), 1).flatten(0, 1)


class MeanOfShares:
    """The mean of the losses of all processes, in one: a loss that does not add up over a batch sees one share."""

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss = loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, output: Any, target: Any) -> torch.Tensor:
        losses = [self.loss(_share(output, share), _share(target, share)) for share in range(SHARES)]
        return torch.stack(losses).mean()


def _share(batch: Any, share: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[share::SHARES]
    if isinstance(batch, Mapping):
        return {name: _share(value, share) for name, value in batch.items()}
    return [_share(value, share) for value in batch]


class Joined(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Batches of all processes, each drawn by its own seed, as batches of one."""

    def __init__(self, patches: Any, seed: int) -> None:
        self.seed = seed
        self.seeds = importlib.import_module(
            f"{type(patches).__module__.split('.')[0]}.shared.checkpointing"
        ).epoch_seeds
        self.data = patches.data
        self.parts = [copy(patches) for _ in range(SHARES)]

    def set_random_state(self, seed: int) -> None:
        epoch = next(epoch for epoch in count() if self.seeds(self.seed, process=0, epoch=epoch)[-1] == seed)
        for rank, part in enumerate(self.parts):
            part.set_random_state(self.seeds(self.seed, process=rank, epoch=epoch)[-1])

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batches = [part[index] for part in self.parts]
        return {name: _dealt([batch[name] for batch in batches]) for name in batches[0]}


class Stopped(BaseException):
    """All processes end here."""


class Watch:
    """Notes which files below a folder this process writes, moves or replaces."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: dict[str, list[str]] = {}
        self.run = ""
        sys.addaudithook(self.audit)

    def audit(self, event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.note(details[0])
        elif event == "os.rename":
            self.note(details[1])

    def note(self, path: Any) -> None:
        if self.run and isinstance(path, str | bytes | Path) and os.fsdecode(path).startswith(self.folder):
            self.found.setdefault(self.run, []).append(os.fsdecode(path))


@contextmanager
def ending_early(trainings: Any, run: Mapping[str, Any], folder: str) -> Iterator[None]:
    """Lets a run stop, or its second process die."""
    save, seed_epoch = trainings.save, trainings.seed_epoch

    def saves_and_stops(self: Any, engine: Engine) -> None:
        save(self, engine)
        if engine.state.epoch == run.get("stop"):
            raise Stopped

    def dies(engine: Engine) -> None:
        if "die" in run and engine.state.epoch == 2 and os.environ["RANK"] == "1":
            Path(folder, "died").touch()
            raise_or_kill(run["die"], trainings.__module__)

    def seeds_and_dies(self: Any, engine: Engine) -> None:
        seed_epoch(self, engine)
        if engine.state.epoch == 2:
            engine.add_event_handler(Events.ITERATION_COMPLETED, dies)

    trainings.save, trainings.seed_epoch = saves_and_stops, seeds_and_dies
    try:
        yield
    finally:
        trainings.save, trainings.seed_epoch = save, seed_epoch


def raise_or_kill(death: str, module: str) -> None:
    """Ends this process in one of the ways in which processes end."""
    if death == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if death == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    raise importlib.import_module(module).InputError([("7", "file", "rule")])


def finished(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """A command that has ended, without a GPU, in the repository's folder."""
    environment = ON_CPU | variables
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def meet(place: Path) -> None:
    """Agrees on a port for a run alone: a store that knows the groups of the run before lets no second one begin."""
    if os.environ["RANK"] == "0":
        partial = place.with_suffix(".partial")
        partial.write_text(str(free_port()))
        partial.replace(place)
    while not place.exists():
        time.sleep(0.02)
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": place.read_text()})


def leave_the_others() -> None:
    """Makes this process the only one."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})


def main(file: str) -> None:
    """Does what the plan says."""
    plan = json.loads(Path(file).read_text())
    rank = int(os.environ["RANK"])
    sys.path.append(plan["root"])
    trainings = importlib.import_module(f"{plan['package']}.shared.checkpointing").TrainingState
    watch = Watch(plan["folder"])
    for index, run in enumerate(plan["together"]):
        meet(Path(plan["folder"], f"port_{index}"))
        watch.run = str(index)
        try:
            with ending_early(trainings, run, plan["folder"]):
                monai.bundle.run(logging_file=False, **run["arguments"])
        except Stopped:
            torch.distributed.destroy_process_group()
    watch.run = ""
    Path(plan["folder"], f"writes_{rank}.json").write_text(json.dumps(watch.found))
    for run in plan["alone"][rank::SHARES]:
        leave_the_others()
        monai.bundle.run(logging_file=False, **run["arguments"])


if __name__ == "__main__":
    main(*sys.argv[1:])
