"""Random streams of a training: those of seeds, epochs and processes have nothing to do with each other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DistributedSampler
from monai.utils import set_determinism

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, package, small

resume = importlib.import_module(f"{package(NAMES[0])}.shared.checkpointing")  # identical in every bundle
SEEDS = (0, 1, 2, 50_000, 2**32 - 1)


@pytest.fixture(autouse=True)
def as_random_as_before() -> Iterator[None]:
    yield
    set_determinism(None)


def test_streams_differ() -> None:
    """No two seeds of neighbouring seeds, processes and epochs are equal: no stream is another's, shifted."""
    found = [
        resume.epoch_seeds(seed, process=process, epoch=epoch)
        for seed in SEEDS
        for process in range(3)
        for epoch in range(1, 20)
    ]
    numbers = [number for seeds in found for number in seeds]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**32 for number in numbers)


@each_bundle
def test_any_seed_draws_its_own_batches(bundle: str, phantoms: NamedPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of every bundle's data set depend on seed, epoch and process, and on nothing before them."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train")))
    parser.update({**small(bundle, "train"), "dataset_dir": str(phantoms(bundle)), "device": "cpu"})
    last = next(handler for handler in parser["train::handlers"] if "TrainingState" in str(handler))
    loader = parser.get_parsed_content("train::dataloader")
    module = importlib.import_module(f"{package(bundle)}.shared.checkpointing")
    dataset = parser.get_parsed_content(last["dataset"].removeprefix("@"))
    parser.update({"seed": 50_000})
    assert parser.get_parsed_content(f"train::handlers::{len(parser['train::handlers']) - 1}::seed") == 50_000
    engine = SimpleNamespace(state=SimpleNamespace(epoch=0), data_loader=loader)

    def first(seed: int, epoch: int, rank: int = 0) -> torch.Tensor:
        monkeypatch.setattr(module.idist, "get_rank", lambda: rank)
        engine.state.epoch = epoch
        module.TrainingState("none.pt", {}, dataset=dataset, seed=seed).seed_epoch(engine)
        batch = next(iter(loader))
        return torch.cat([torch.from_numpy(np.array(batch["image"])).flatten(), torch.rand(2)])

    drawn = [first(seed, 1) for seed in SEEDS] + [first(0, 2), first(0, 3), first(0, 1, rank=1)]
    assert len({tuple(one[-2:].tolist()) for one in drawn}) == len(drawn)
    images = [hash(one[:-2].numpy().tobytes()) for one in drawn]
    assert len(set(images)) == len(images)
    assert torch.equal(first(0, 1), drawn[0]) is True


def test_several_processes_share_an_order_that_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process takes of an epoch the other does not, and another seed or epoch deals otherwise."""
    data = list(range(64))

    def order(seed: int, epoch: int, rank: int) -> list[int]:
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True)
        engine = SimpleNamespace(state=SimpleNamespace(epoch=epoch), data_loader=SimpleNamespace(sampler=sampler))
        monkeypatch.setattr(resume.idist, "get_rank", lambda: rank)
        resume.TrainingState("none.pt", {}, dataset=data, seed=seed).seed_epoch(engine)
        return list(sampler)

    found = {(seed, epoch): [order(seed, epoch, rank) for rank in (0, 1)] for seed in (0, 1) for epoch in (1, 2)}
    assert all(sorted(one + other) == data for one, other in found.values())
    assert len({tuple(map(tuple, orders)) for orders in found.values()}) == len(found)
