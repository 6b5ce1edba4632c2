"""Training by two processes: the curve of one, files written once, an end when one of them dies."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import nn

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_of_two, package, recipe
from tests.support.distributed import LAUNCH, ON_CPU, finished, free_port
from tests.support.runs import arguments, cases, command_line, copy, is_variant, load, run, same, stages
from tools import REPO
from tools.data.phantoms import phantoms as make_phantoms

Curves = dict[str, dict[int, float]]
EPOCHS = 2
TOLERANCE = 5e-4  # sums in another order differ by 1e-7, to which Adam gives weight where a gradient is nearly 0
VOXELS = 2e-4  # and where two classes are equally likely, such a difference decides of a voxel

BUNDLE = NAMES[0]


def scans(bundle: str, folder: Path) -> Path:
    """Seven phantoms, and beside them a split: four to train on, three, an odd number, to validate on."""
    data = make_phantoms(bundle, str(folder / "data"), cases=7, **recipe(bundle)["phantoms"])
    names = sorted(path.name for path in data.iterdir())
    (folder / "split.json").write_text(json.dumps({"training": names[:4], "validation": names[4:]}))
    return data


def by_several(bundle: str, stage: str, *, data: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments of a stage for several processes, with as many cases as in `scans`."""
    found = cases(bundle, data)
    every = [*found["training"], *found["validation"]]
    overrides = {"cases": {"training": every[:4], "validation": every[4:7]}, "max_epochs": EPOCHS} | overrides
    given = arguments(bundle, stage, data=data, folder=folder, **overrides)
    del given["device"]
    overlay = REPO / "bundles" / bundle / "configs/multi_gpu_train.yaml"
    return given | {"config_file": [*config_files(bundle, stage), str(overlay)]}


def comparable(bundle: str, stage: str, *, data: Path, folder: Path, alone: bool) -> dict[str, Any]:
    """Those arguments, with nothing left to chance."""
    settings = recipe(bundle)["distributed"]
    overrides = settings["both"] | settings.get("stages", {}).get(stage, {}) | (settings["alone"] if alone else {})
    return by_several(bundle, stage, data=data, folder=folder, **overrides)


def run_plan(bundle: str, folder: Path, **runs: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Two processes do the runs `together`, then one each of those `alone`."""
    plan = {"root": str(REPO / "bundles" / bundle), "package": package(bundle), "folder": str(folder)}
    file = folder / "plan.json"
    file.write_text(json.dumps({"together": [], "alone": [], **plan, **runs}))
    return finished([*LAUNCH, "-m", "tests.support.distributed", str(file)])


def curves(folder: Path) -> Curves:
    """The scalars of the TensorBoard logs in a folder by epoch, each logged once."""
    found: Curves = {}
    for file in folder.glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                assert event.step not in found.setdefault(name, {}), f"{name} of epoch {event.step} is logged twice"
                found[name][event.step] = event.value
    return found


def compare_curves(together: Path, alone: Path, *, tolerance: float = TOLERANCE) -> None:
    """A run that was stopped and resumed, and one of one process, log the same losses and metrics."""
    found, expected = curves(together), curves(alone)
    assert {"train_loss", "learning_rate"} < expected.keys() == found.keys()
    assert any(name.startswith("val_") for name in expected)
    for name, curve in expected.items():
        assert set(curve) == {1, 2}, name
        rounding = VOXELS * tolerance / TOLERANCE if name.startswith("val_") else 1e-5
        assert found[name] == pytest.approx(curve, rel=tolerance, abs=rounding), f"{together}: {name}"
    assert expected["train_loss"][1] != expected["train_loss"][2]


def check_files(written: list[str], folder: Path) -> None:
    """In an epoch, the training state is written once, and nothing but whole files stays."""
    names = [name for path in written if not (name := Path(path).name).startswith(".")]  # locks, and unfinished files
    assert sum(name.endswith("training_state.pt") for name in names) == 1
    assert len({name for name in names if name.startswith("events")}) == 2  # of training and of validation
    assert all(names.count(name) == 1 for name in names if name.endswith(".pt"))
    assert not list(folder.rglob(".partial*"))
    (file,) = (folder / "models").glob("*training_state.pt")
    trainer = load(file)["trainer"]
    assert trainer["iteration"] == EPOCHS * trainer["epoch_length"]


@pytest.mark.gate
@pytest.mark.parametrize("variants", [False, pytest.param(True, marks=pytest.mark.nightly)])
@each_bundle
def test_two_processes_train_as_one(bundle: str, variants: bool, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Two processes, stopped after an epoch and resumed, do in every stage what one does that sees both their batches.

    Losses, and metrics of three validation cases, agree to rounding: nothing is left out, counted twice or weighted
    otherwise. What DDP does not share, batch normalisation and losses over a batch, that one computes by shares. The
    first process alone writes.
    """
    chosen = [stage for stage in stages(bundle, "training") if is_variant(bundle, stage) is variants]
    data = scans(bundle, tmp_path)
    if before := recipe(bundle)["distributed"].get("before"):
        copy(tiny_weights(bundle), tmp_path / "before/models")
        run(bundle, before, data=data, folder=tmp_path / "before")
    runs: dict[str, list[dict[str, Any]]] = {"together": [], "alone": []}
    for stage in chosen:
        for kind, planned in runs.items():
            copy(tiny_weights(bundle), tmp_path / stage / kind / "models")
            given = comparable(bundle, stage, data=data, folder=tmp_path / stage / kind, alone=kind == "alone")
            planned += [{"arguments": given, "stop": 1}] * (kind == "together") + [{"arguments": given}]
    done = run_plan(bundle, tmp_path, **runs)
    assert done.returncode == 0, done.stderr[-5000:]
    written, by_the_second = (json.loads((tmp_path / f"writes_{rank}.json").read_text()) for rank in (0, 1))
    assert by_the_second == {}
    for index, stage in enumerate(chosen):
        tolerance = recipe(bundle)["distributed"].get("tolerance", {}).get(stage, TOLERANCE)
        compare_curves(tmp_path / stage / "together/eval", tmp_path / stage / "alone/eval", tolerance=tolerance)
        for number in (2 * index, 2 * index + 1):
            check_files(written[str(number)], tmp_path / stage / "together")
        models = [tmp_path / stage / kind / "models" for kind in runs]
        assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in models}) == 1


def left_behind(word: str) -> list[str]:
    """Command lines of processes that still run and have a word in them."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            lines.append(file.read_bytes().decode(errors="replace"))
    return [line for line in lines if word in line]


@pytest.mark.gate
@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("kill", "Signal 9"),
        pytest.param("memory", "CUDA out of memory", marks=pytest.mark.nightly),
        pytest.param("input", "case 7: file: rule", marks=pytest.mark.nightly),
    ],
)
@each_of_two
def test_one_process_dies(bundle: str, death: str, message: str, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Soon all end, and it is said why; the state of the epoch before is whole, and two others go on from it."""
    models = copy(tiny_weights(bundle), tmp_path / "models")
    given = by_several(bundle, "train", data=scans(bundle, tmp_path), folder=tmp_path)
    done = run_plan(bundle, tmp_path, together=[{"arguments": given, "die": death}])
    died = (tmp_path / "died").stat().st_mtime
    assert time.time() - died < 180
    assert done.returncode != 0
    assert message in done.stderr
    assert left_behind(str(tmp_path)) == []
    assert not list(tmp_path.rglob(".partial*"))
    trainer = load(models / "training_state.pt")["trainer"]
    assert trainer["iteration"] == trainer["epoch_length"]
    resumed = finished([*LAUNCH, "-m", "monai.bundle", *command_line(given)])
    assert resumed.returncode == 0, resumed.stderr[-5000:]
    assert f"Resumed from {models / 'training_state.pt'} after epoch 1" in resumed.stdout + resumed.stderr
    assert load(models / "training_state.pt")["trainer"]["iteration"] == 2 * trainer["epoch_length"]


@pytest.mark.gate
def test_bad_input_is_reported_once(tmp_path: Path) -> None:
    """One process reads the scans, all end with what it found; one says so, and none starts."""
    data = scans(BUNDLE, tmp_path)
    given = by_several(BUNDLE, "train", data=data, folder=tmp_path)
    missing = Path(given["cases"]["validation"][0]["label"])
    missing.unlink()
    done = finished([*LAUNCH, "-m", "monai.bundle", *command_line(given)])
    assert done.returncode != 0
    assert done.stderr.count(f"{missing}: label is missing") == 1
    assert done.stderr.count("Checking scans: 100%") == 1
    assert not (tmp_path / "models").exists()


def test_every_process_draws_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, dropout and augmentation of an epoch differ between processes, and are the same at every start."""
    resume = importlib.import_module(f"{package(BUNDLE)}.shared.checkpointing")
    handler = resume.TrainingState(str(tmp_path / "state.pt"), {}, dataset=[0], seed=3)
    engine = Engine(lambda *_: None)
    engine.data_loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1)))
    drawn = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(resume.idist, "get_rank", lambda rank=rank: rank)
        handler.seed_epoch(engine)
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(*drawn[:2], strict=True))


def test_machines_that_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that sees no state, or another one, than the others does not begin where they do not."""
    resume = importlib.import_module(f"{package(BUNDLE)}.shared.checkpointing")
    network, engine = nn.Linear(1, 1), Engine(lambda *_: None)
    handler = resume.TrainingState(str(tmp_path / "state.pt"), {"network": network}, dataset=[0], seed=0)
    monkeypatch.setattr(resume.idist, "all_gather", lambda done: [done, 40])
    with pytest.raises(resume.InputError, match="must be a folder that all machines share"):
        handler.restore(engine)


@pytest.mark.nightly
def test_two_machines(tiny_weights: NamedPath, tmp_path: Path) -> None:
    """`examples/two_nodes.sh`, both of whose machines are this one, trains one network."""
    models = copy(tiny_weights(BUNDLE), tmp_path / "models")
    words = command_line(by_several(BUNDLE, "train", data=scans(BUNDLE, tmp_path), folder=tmp_path))[2:]
    options = words[: words.index("--config_file")] + words[words.index("--config_file") + 2 :]
    here = {"BUNDLE": BUNDLE, "HEAD": f"127.0.0.1:{free_port()}", "PROCESSES": "1", "PYTHON": sys.executable}
    command = ["examples/two_nodes.sh", *options]
    with subprocess.Popen(
        command, cwd=REPO, env=ON_CPU | here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as node:
        done = finished(command, **here)
        assert node.wait(timeout=300) == 0
    assert done.returncode == 0, done.stderr[-5000:]
    state, expected = load(models / "training_state.pt"), load(tiny_weights(BUNDLE) / "model.pt")
    assert state["trainer"]["iteration"] == EPOCHS * state["trainer"]["epoch_length"]
    assert not same(load(models / "model.pt"), expected)
    assert load(models / "model.pt").keys() == expected.keys()
    (record,) = (tmp_path / "eval").glob("run_training_*.json")
    assert json.loads(record.read_text())["processes"] == 2
