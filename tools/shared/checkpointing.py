"""Training runs that survive being killed: state after every epoch, randomness tied to the epoch, best weights kept."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EMAHandler
from monai.data.utils import set_rnd
from monai.utils import MAX_SEED
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .files import atomic_write
from .record import file_digest, keep
from .validation import InputError
from .weights import read_tensors

if TYPE_CHECKING:
    from .identity import RunIdentity

__all__ = ["BestModel", "TrainingState", "WeightAverage", "epoch_seeds", "save_atomically"]

logger = logging.getLogger(__name__)


def save_atomically(content: Mapping[str, Any], path: str | Path) -> None:
    """Saves `content` so that `path` holds either the old or the new file, whenever the process dies."""
    with atomic_write(path) as partial:
        _save(content, partial)


def _save(content: Mapping[str, Any], path: Path) -> None:
    """Into an open file: what torch opens itself has the file's name in it, and equal weights would not be equal."""
    with path.open("wb") as file:
        torch.save(content, file)


def epoch_seeds(seed: int, *, process: int, epoch: int) -> list[int]:
    """Returns four 32-bit seeds of streams that no other seed, process or epoch has."""
    return [int(word) for word in np.random.SeedSequence((seed, process, epoch)).generate_state(4)]


class BestModel:
    """Handler for a validator: keeps the weights of the best validation as a flat state dict.

    Weights at `path` that this run has not left there are kept as `<name>_previous.pt`, `<name>_2_previous.pt` and so
    on. Where there are none, those of any validation are saved, and are the ones to beat.

    Args:
        network: network whose weights are saved.
        path: file that always holds the best weights so far.
        or_equal: whether weights that are as good replace those before them.
    """

    def __init__(self, network: nn.Module, path: str, *, or_equal: bool = False) -> None:
        self.network = network
        self.path = Path(path)
        self.or_equal = or_equal
        self.best = -math.inf
        self.saved: str | None = None

    def attach(self, engine: Engine) -> None:
        """Attaches to `engine`, whose `state.key_metric_name` names the metric to maximise."""
        engine.add_event_handler(Events.STARTED, self.share_buffers)
        engine.add_event_handler(Events.COMPLETED, self)

    def share_buffers(self) -> None:
        """Gives every process the first one's statistics of batch normalisation: what is validated is what is saved."""
        if idist.get_world_size() > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def __call__(self, engine: Engine) -> None:
        """Saves the weights when the key metric of this validation is the best of the run, or there are none."""
        value = float(engine.state.metrics[engine.state.key_metric_name])
        better = value >= self.best if self.or_equal else value > self.best
        if idist.get_rank() > 0 or (self.path.is_file() and not better):
            return
        if not all(torch.isfinite(weights).all() for weights in self.network.state_dict().values()):
            raise FloatingPointError(f"the training diverged, nothing is saved to {self.path}: lower the learning rate")
        with atomic_write(self.path) as partial:
            _save(self.network.state_dict(), partial)
            saved = file_digest(partial)
            # The same weights, too, are this run's: it was killed before it saved its state.
            if self.path.is_file() and file_digest(self.path) not in (self.saved, saved):
                keep(self.path)
        self.best, self.saved = -math.inf if math.isnan(value) else value, saved
        logger.info("Weights with %s %.4f saved to %s", engine.state.key_metric_name, value, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value so far, and which weights have it."""
        return {"best": self.best, "saved": self.saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best, self.saved = state["best"], state.get("saved")


class WeightAverage(EMAHandler):
    """Handler for a trainer: exponential moving average of the weights after every step, in `ema_model`.

    Buffers are averaged too: statistics of batch normalisation belong to the weights with which they were taken.

    Args:
        model: network that is trained, perhaps in DDP.
        momentum: weight of the newest weights; in the first steps it is `10 / (9 + step)` where that is more, so that
            the first step copies the network, whatever was loaded into it, and short trainings average over few steps.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__(model, momentum, handle_buffers="update")

    def attach(self, engine: Engine) -> None:
        """Attaches to the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.warm_up)
        super().attach(engine)

    def start(self, engine: Engine) -> None:
        """Notes where this run of the engine starts: at 0, or where the last round of federated learning ended."""
        self.earlier = engine.state.iteration

    def warm_up(self, engine: Engine) -> None:
        """Sets the momentum of this step, a function of its number: a resumed run goes on likewise."""
        engine.state.ema_momentum = max(self.momentum, 10 / (9 + engine.state.iteration - self.earlier))

    def state_dict(self) -> dict[str, Any]:
        """Returns the averaged weights."""
        return dict(self.ema_model.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the averaged weights."""
        self.ema_model.load_state_dict(state)


class TrainingState:
    """Handler for a trainer: saves the whole training state after every epoch and resumes from it.

    Must be the last handler of the trainer, so that validation and learning-rate steps of an epoch are part of its
    state. Randomness is a function of `seed`, the epoch and the process: a resumed run draws what the uninterrupted one
    would have drawn. The state of an earlier run, when a new one starts, is set aside as weights are.

    A trainer that runs without its identity being checked starts from the weights that the network has, with optimizers
    and schedules as they were at first, and keeps no state: so do the rounds of federated learning.

    Args:
        path: the state file.
        objects: what to save beside the trainer itself (epoch, gradient scaler); a `WeightAverage` is attached to it.
        dataset: training data set, whose random transforms are seeded again at every epoch.
        seed: base seed; as MONAI's, it counts modulo 2^32.
        identity: which run this is.
    """

    def __init__(
        self, path: str, objects: Mapping[str, Any], *, dataset: Any, seed: int, identity: RunIdentity | None = None
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.dataset = dataset
        self.seed = seed % MAX_SEED
        self.identity = identity
        self.first: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches to the trainer.

        Raises:
            InputError: when the training data do not fill one batch.
        """
        if not engine.state.epoch_length:
            raise InputError([("", "batch_size", "there are fewer training cases than one batch takes")])
        for item in self.objects.values():
            if isinstance(item, WeightAverage):  # MONAI's check of a bundle takes no reference among the handlers
                item.attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.seed_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        if self.identity is not None:
            engine.add_event_handler(Events.COMPLETED, self.identity.release)

    def start(self, engine: Engine) -> None:
        """Resumes a run that has an identity; gives one that has none its first optimizers and schedules."""
        if self.identity is not None and self.identity.fingerprint is not None:
            self.restore(engine)
            return
        logger.warning("No training state is read or kept: this run has no step that checks its identity")
        changing = {name: item for name, item in self.objects.items() if isinstance(item, Optimizer | LRScheduler)}
        self.first = self.first or deepcopy({name: item.state_dict() for name, item in changing.items()})
        for name, item in changing.items():
            item.load_state_dict(deepcopy(self.first[name]))

    def _all_objects(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return self.objects | {"trainer": engine} | ({} if scaler is None else {"scaler": scaler})

    def restore(self, engine: Engine) -> None:
        """Loads the state file if there is one, or sets it aside where the run starts again.

        Raises:
            InputError: when the file is damaged or does not fit, or one of several processes sees another file than the
                first.
        """
        state = read_tensors(self.path) if self.path.is_file() else None
        self._check_agreement(state)
        if state is None:
            return
        if self.identity is not None and self.identity.starts_new:
            if idist.get_rank() == 0:
                logger.warning("A new run starts; the state of the one before is kept as %s", keep(self.path))
                self.path.unlink()
            return
        max_epochs = engine.state.max_epochs
        try:
            Checkpoint.load_objects(to_load=self._all_objects(engine), checkpoint=state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            rule = "does not fit this network or optimizer: remove it, or choose another ckpt_dir"
            raise InputError([("", str(self.path), rule)]) from error
        engine.state.max_epochs = max_epochs
        logger.info("Resumed from %s after epoch %d", self.path, engine.state.epoch)

    def _check_agreement(self, state: Mapping[str, Any] | None) -> None:
        """Also lets no process touch the file before all have read it."""
        done = -1 if state is None else int(state["trainer"]["iteration"])
        if len(set(idist.all_gather(done))) > 1:
            rule = "is not the same for all processes: ckpt_dir must be a folder that all machines share"
            raise InputError([("", str(self.path), rule)])

    def seed_epoch(self, engine: Engine) -> None:
        """Seeds everything random in this epoch."""
        epoch = engine.state.epoch
        for_python, for_numpy, for_torch, for_data = epoch_seeds(self.seed, process=idist.get_rank(), epoch=epoch)
        random.seed(for_python)
        np.random.seed(for_numpy)  # noqa: NPY002
        torch.manual_seed(for_torch)
        set_rnd(self.dataset, for_data)
        sampler = engine.data_loader.sampler
        if hasattr(sampler, "set_epoch"):  # a distributed sampler shuffles by this number, which all processes share
            sampler.set_epoch(epoch_seeds(self.seed, process=0, epoch=epoch)[-1])

    def save(self, engine: Engine) -> None:
        """Saves the state of all objects, from the first process only."""
        if self.identity is not None and self.identity.fingerprint is not None and idist.get_rank() == 0:
            state: dict[str, Any] = {"run": self.identity.fingerprint}
            for name, item in self._all_objects(engine).items():
                state[name] = getattr(item, "module", item).state_dict()  # that of a network without its DDP
            save_atomically(state, self.path)
