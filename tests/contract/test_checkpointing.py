"""Training that is killed, resumed, finished, started again; files that are never half written."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from tests.conftest import NAMES, NamedPath, each_bundle, each_of_two, package
from tests.support.runs import arguments, copy, each_stage, load, network_of, run, same
from tests.support.trajectories import EPOCHS, SETTINGS, Trajectory
from tools import REPO

checkpointing = importlib.import_module(f"{package(NAMES[0])}.shared.checkpointing")  # identical in every bundle
weights = importlib.import_module(f"{package(NAMES[0])}.shared.weights")
InputError = importlib.import_module(f"{package(NAMES[0])}.shared.validation").InputError


class Killed(BaseException):
    """The process dies here."""


def half_save(content: Any, file: BinaryIO) -> None:
    file.write(b"half of a file")
    raise Killed


def contents(folder: Path) -> dict[str, Any]:
    return {path.name: load(path) for path in sorted(folder.glob("[!.]*.pt"))}


@each_stage
def test_resumed_run_equals_uninterrupted_one(
    bundle: str,
    stage: str,
    phantoms: NamedPath,
    tiny_weights: NamedPath,
    trajectory: Trajectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch, death while the second is saved, and a new start give what two epochs at once give, bit for bit.

    That is: network, optimizer, learning rate, best score, best weights. The second epoch changes every weight: none is
    left out of the optimizer or cut off from the loss.
    """
    copy(tiny_weights(bundle), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(bundle), "folder": tmp_path}
    save, states = torch.save, 0

    def second_dies(content: Any, file: BinaryIO) -> None:
        nonlocal states
        states += "state" in Path(file.name).name
        (half_save if states == 2 else save)(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", second_dies)
        with pytest.raises(Killed):
            run(bundle, stage, **given, **SETTINGS)
    first = network_of(tmp_path)
    (path,) = (tmp_path / "models").glob("*state.pt")
    assert load(path)["trainer"]["iteration"] == load(path)["trainer"]["epoch_length"]
    run(bundle, stage, **given, **SETTINGS)
    whole, killed = (contents(folder / "models") for folder in (trajectory(bundle, stage), tmp_path))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if not same(whole[name], killed[name])] == []
    assert [name for name, value in network_of(tmp_path).items() if torch.equal(value, first[name])] == []


@each_bundle
def test_seed(
    bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, trajectory: Trajectory, tmp_path: Path
) -> None:
    """A seed fixes the run, of which validation is no part; another seed gives another one."""
    networks = {}
    for seed in (SETTINGS["seed"], SETTINGS["seed"] + 1):
        folder = tmp_path / str(seed)
        copy(tiny_weights(bundle), folder / "models")
        run(bundle, "train", data=phantoms(bundle), folder=folder, **SETTINGS | {"val_interval": EPOCHS, "seed": seed})
        networks[seed] = network_of(folder)
    expected = network_of(trajectory(bundle, "train"))
    assert [same(network, expected) for network in networks.values()] == [True, False]


@pytest.mark.gate
@pytest.mark.parametrize("moment", ["step", pytest.param("state", marks=pytest.mark.nightly), "weights"])
@each_of_two
def test_killed_process(
    bundle: str, moment: str, phantoms: NamedPath, tiny_weights: NamedPath, trajectory: Trajectory, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a step or of a file: whole files stay whole, and the next run makes up for it."""
    models = copy(tiny_weights(bundle), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(bundle), "folder": tmp_path, **SETTINGS}
    marker, words = tmp_path / "marker", tmp_path / "arguments.json"
    words.write_text(json.dumps(arguments(bundle, "train", **given)))
    command = [sys.executable, "-m", "tests.support.killed_run", moment, str(marker), str(words)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not marker.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert marker.exists()
    left = contents(models)
    if moment == "weights":
        assert all(same(left[name], value) for name, value in contents(tiny_weights(bundle)).items())
    else:
        trainer = left["training_state.pt"]["trainer"]
        assert trainer["iteration"] == trainer["epoch_length"]
    run(bundle, "train", **given)
    assert same(contents(models), contents(trajectory(bundle, "train") / "models"))
    assert not list(models.glob(".*"))  # neither the half file nor a lock


def test_save_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.pt"
    checkpointing.save_atomically({"value": 1}, path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_save)
        with pytest.raises(Killed):
            checkpointing.save_atomically({"value": 2}, path)
    assert load(path) == {"value": 1}
    checkpointing.save_atomically({"value": 3}, path)
    assert load(path) == {"value": 3}
    assert [file.name for file in path.parent.iterdir()] == ["file.pt"]


def validator(*scores: float) -> tuple[Engine, list[float]]:
    """An engine whose runs score what is given, in this order."""
    left = list(scores)

    def step(engine: Engine, _: Any) -> None:
        engine.state.metrics["dice"] = left.pop(0)
        engine.state.key_metric_name = "dice"

    return Engine(step), left


@pytest.mark.parametrize(("or_equal", "after"), [(False, [7, 1, 1, 1, 4, 4]), (True, [7, 1, 2, 2, 4, 4])])
def test_best_model(or_equal: bool, after: list[float], tmp_path: Path) -> None:
    """A better score saves the weights, a worse or undefined one does not; earlier weights are kept once."""
    network, path = nn.Linear(1, 1, bias=False), tmp_path / "model.pt"
    torch.save({"weight": torch.tensor([[7.0]])}, path)
    best = checkpointing.BestModel(network, str(path), or_equal=or_equal)
    scores = (float("nan"), 0.5, 0.5, 0.4, 0.6, float("nan"))
    engine, _ = validator(*scores)
    best.attach(engine)
    saved = []
    for number in range(len(scores)):
        nn.init.constant_(network.weight, number)
        engine.run([0])
        saved.append(float(load(path)["weight"]))
    assert saved == after
    assert load(tmp_path / "model_previous.pt") == {"weight": torch.tensor([[7.0]])}
    assert [file.name for file in tmp_path.glob("*previous*")] == ["model_previous.pt"]
    assert best.state_dict()["best"] == 0.6


# What lies at the path when a run goes on that has left 0, with a score of 0.5; after scores of 0.4 and 0.6.
RESUMED: dict[str, tuple[float | None, list[float], list[float]]] = {
    "its own": (0, [0, 2], []),  # still has to be beaten
    "nothing": (None, [1, 2], []),
    "another's": (7, [7, 2], [7]),
    "what it saves": (2, [2, 2], []),  # it was killed before it saved its state
}


def test_weights_of_a_diverged_training_are_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, torch.nan)
    engine = Engine(lambda engine, _: engine.state.metrics.update(dice=0.5))
    engine.state.key_metric_name = "dice"
    checkpointing.BestModel(network, str(path)).attach(engine)
    with pytest.raises(FloatingPointError, match=r"model\.pt: lower the learning rate"):
        engine.run([0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RESUMED)
def test_best_model_resumed(name: str, tmp_path: Path) -> None:
    """A run ends with weights, replaces its own where they are beaten, and no others without a copy."""
    lies, after, kept = RESUMED[name]
    network, path = nn.Linear(1, 1, bias=False), tmp_path / "model.pt"
    engine, _ = validator(0.5)
    first = checkpointing.BestModel(network, str(path))
    first.attach(engine)

    def set_weight(number: float) -> None:
        nn.init.constant_(network.weight, number)

    set_weight(0)
    engine.run([0])
    if lies is None:
        path.unlink()
    else:
        set_weight(lies)
        checkpointing.save_atomically(network.state_dict(), path)
    second = checkpointing.BestModel(network, str(path))
    second.load_state_dict(first.state_dict())
    engine, _ = validator(0.4, 0.6)
    second.attach(engine)
    saved = []
    for number in (1, 2):
        set_weight(number)
        engine.run([0])
        saved.append(float(load(path)["weight"]))
    assert saved == after
    assert [float(load(file)["weight"]) for file in tmp_path.glob("*_previous.pt")] == kept


def test_first_weights_are_saved_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier weights stay in place until the new ones are complete."""
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.tensor(7.0)}, path)
    engine, _ = validator(0.5)
    checkpointing.BestModel(nn.Linear(1, 1), str(path)).attach(engine)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_save)
        with pytest.raises(Killed):
            engine.run([0])
    assert load(path) == {"weight": torch.tensor(7.0)}


def test_weight_average_by_hand() -> None:
    """The first step copies, later ones take `10 / (9 + step)` of the new weights or the momentum; buffers likewise."""
    network = nn.BatchNorm1d(1)
    average = checkpointing.WeightAverage(network, momentum=0.9)
    found = []

    def step(_: Engine, value: float) -> None:
        nn.init.constant_(network.weight, value)
        network.get_buffer("running_mean").fill_(value)

    trainer = Engine(step)
    average.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(float(average.ema_model.weight)))
    trainer.run([7.0, 18.0, 7.0])
    assert found == pytest.approx([7.0, 7 / 11 + 180 / 11, 0.1 * (7 + 180) / 11 + 6.3], rel=1e-5)
    assert float(average.state_dict()["running_mean"]) == pytest.approx(found[-1])
    other = checkpointing.WeightAverage(nn.BatchNorm1d(1), momentum=0.9)
    other.load_state_dict(average.state_dict())
    assert same(other.ema_model.state_dict(), average.ema_model.state_dict())


WRONG = {
    "missing": (None, "there are no such weights"),
    "nested": ({"model_state": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}, "no flat state dict of tensors"),
    "object": (nn.Linear(3, 2), "cannot be read as a file of tensors"),
    "list": ([torch.zeros(2, 3)], "no flat state dict of tensors"),
    "absent name": ({"weight": torch.zeros(2, 3)}, "does not fit the chosen Linear: missing bias"),
    "further name": ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "gate": torch.zeros(1)}, "unknown gate"),
    "shape": ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight has shape \(2, 4\) instead of \(2, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights(name: str, tmp_path: Path) -> None:
    content, rule = WRONG[name]
    path = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=rule) as caught:
        weights.load_weights(nn.Linear(3, 2), path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_truncated_weights(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="cannot be read as a file of tensors") as caught:
        weights.load_weights(nn.Linear(3, 2), path)
    assert str(path) in str(caught.value)


def test_load_weights(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpointing.save_atomically(source.state_dict(), tmp_path / "model.pt")
    assert weights.load_weights(target, tmp_path / "model.pt") is target
    assert same(source.state_dict(), target.state_dict())
