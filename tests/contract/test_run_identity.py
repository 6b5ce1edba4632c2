"""A run is the same run only if it is: cases and settings of a state, finished runs, federated rounds."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from torch import nn

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, package, small
from tests.support.runs import arguments, cases, copy, epochs_of, files, load, network_of, rejection, run, same, stages
from tools import REPO

VNET, COOP, ENSEMBLE, HADNET = (next(name for name in NAMES if word in name) for word in ("vnet", "coop", "ens", "had"))
identity = importlib.import_module(f"{package(VNET)}.shared.identity")  # identical in every bundle
resume = importlib.import_module(f"{package(VNET)}.shared.checkpointing")


@pytest.fixture(autouse=True)
def as_random_as_before() -> Iterator[None]:
    yield
    set_determinism(None)


@pytest.fixture(scope="module")
def trained(
    phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Folder of a V-Net after one epoch of two cases to train on and one to validate on, and what it was given."""
    folder = tmp_path_factory.mktemp("trained")
    copy(tiny_weights(VNET), folder / "models")
    names = sorted(path.name for path in phantoms(VNET).iterdir())
    file = folder / "split.json"
    file.write_text(json.dumps({"training": names[:2], "validation": names[2:3]}))
    given: dict[str, Any] = {"data": phantoms(VNET), "split_file": str(file)}
    run(VNET, "train", folder=folder, max_epochs=1, **given)
    return folder, given


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": 0.5}, "learning_rate: 0.01 -> 0.5"),
    "loss": ({"loss#batch": False}, "loss::batch: true -> false"),
    "resolution": ({"pixdim": [5.0, 5.0, 5.0]}, "pixdim: [5.0, 5.0, 2.5] -> [5.0, 5.0, 5.0]"),
    "augmentation": ({"train#random_transforms#2#prob": 0.9}, "train::random_transforms::2::prob: 0.5 -> 0.9"),
    "schedule": ({"train#handlers#0": {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler"}}, "print_lr"),
    "seed": ({"seed": 7}, "seed: 123 -> 7"),
    "batches": ({"batch_size": 1}, "batch_size: 2 -> 1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_runs_state_is_refused(name: str, trained: tuple[Path, dict[str, Any]]) -> None:
    """Before anything is written; the message says in what the runs differ, and in nothing else, and what to do."""
    folder, given = trained
    overrides, difference = OTHERS[name]
    message = rejection(VNET, "train", folder=folder, max_epochs=2, **given, **overrides)
    found = message.splitlines()[2:-1]
    assert len(found) == 1
    assert difference in found[0]
    assert "another ckpt_dir" in message
    assert "--restart true" in message


def test_another_split_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """What the first run validated on must not be trained on by its weights."""
    folder, given = trained
    split = json.loads(Path(given["split_file"]).read_text())
    (tmp_path / "split.json").write_text(json.dumps({"training": split["validation"], "validation": split["training"]}))
    changed = given | {"split_file": str(tmp_path / "split.json")}
    message = rejection(VNET, "train", folder=folder, max_epochs=2, **changed)
    assert [line.strip() for line in message.splitlines()[2:-1]] == [
        f"training cases removed: {', '.join(split['training'])}",
        f"training cases added: {', '.join(split['validation'])}",
        f"validation cases removed: {', '.join(split['validation'])}",
        f"validation cases added: {', '.join(split['training'])}",
    ]


def test_corrected_label_is_another_run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, given = trained
    data = copy(given["data"], tmp_path / "data")
    first = json.loads(Path(given["split_file"]).read_text())["training"][0]
    with next((data / first).glob("laendo*")).open("ab") as file:
        file.write(b"\n")
    message = rejection(VNET, "train", folder=folder, max_epochs=2, **given | {"data": data})
    assert [line.strip() for line in message.splitlines()[2:-1]] == [f"training cases with other files: {first}"]


def test_elsewhere_it_is_the_same_run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Data and results that were moved, more epochs, another machine, other logs: the run goes on."""
    folder, given = trained
    moved = copy(folder, tmp_path / "moved")
    given |= {"data": copy(given["data"], tmp_path / "elsewhere"), "split_file": str(moved / "split.json")}
    machine: dict[str, Any] = {
        "val_interval": 2,
        "amp": "$False",
        "device": "$torch.device('cpu')",
        "train#handlers#4#desc": "Again",
    }
    run(VNET, "train", folder=moved, max_epochs=2, output_dir=str(tmp_path / "logs"), **given, **machine)
    assert epochs_of(moved / "models") == 2
    assert not (moved / "models/training_state_previous.pt").exists()


def test_what_settings_are() -> None:
    """Overlays differ by what they do to the training, not by where they write weights; several processes do, too."""

    def settings(*stems: str) -> dict[str, Any]:
        parser = ConfigParser(
            ConfigParser.load_config_files([f"{REPO}/bundles/{COOP}/configs/{s}.yaml" for s in stems])
        )
        parser.parse()
        cases: dict[str, Any] = {"training": {}, "validation": {}}
        return {"settings": identity.settings_of(parser.config), "cases": cases}

    train = settings("train")
    assert identity.differences(train, settings("train")) == []
    assert identity.differences(train, settings("train", "standard_training")) == ["latent_augmentation: true -> false"]
    assert "normalize_slices: false -> true" in identity.differences(train, settings("train", "reference"))
    precise = identity.differences(train, settings("train", "bfloat16"))
    assert {line.partition(": ")[0].removesuffix("::_target_") for line in precise} == {"train::inferer"}
    together = identity.differences(train, settings("train", "multi_gpu_train"))
    assert together
    assert not any("handlers" in line or "run" in line for line in together)
    assert identity.differences(None, train) != []


def test_what_no_run_differs_by() -> None:
    """A retry with less memory, or with another look at the validation, goes on; with other patches it does not."""
    config = ConfigParser.load_config_file(f"{REPO}/bundles/{ENSEMBLE}/configs/train.yaml")
    settings = identity.settings_of(config)
    less = {"batch_voxels": 1, "batch_tiles": 1, "shifts": 1, "test_time_flips": [0], "structures": {}, "workers": 0}
    assert identity.settings_of({**config, **less}) == settings
    assert identity.settings_of({**config, "tile": 32}) != settings


COMBINED = ("reference", "reduced", "window", "acdc", "acdc reduced", "acdc reference")


def test_interval_of_validations_that_steer() -> None:
    """Where the learning rate waits for validations to get no better, their interval is a setting; elsewhere not."""
    policies: list[tuple[dict[str, Any], bool]] = [
        ({"lr_policy": "plateau"}, True),
        ({"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}}, True),
        ({"lr_policy": "polynomial"}, False),
    ]
    for config, counts in policies:
        one, other = (identity.settings_of({**config, "val_interval": interval}) for interval in (1, 2))
        assert (one != other) == counts


def test_content_of_labels_counts(tmp_path: Path) -> None:
    """Also where names and sizes are as they were, as pseudo labels by other teachers may be."""
    found = []
    for voxel in (b"\0", b"\1"):
        (tmp_path / "label.nii.gz").write_bytes(gzip.compress(voxel, mtime=0))
        case = {"case": "1", "image": str(tmp_path / "image.nrrd"), "label": str(tmp_path / "label.nii.gz")}
        found.append(identity.files_of([[case], []]))
    assert [entry.partition(",")[0] for entry in found[0]["training"]["1"]] == ["label.nii.gz of 21 bytes"]
    assert found[0] != found[1]


def test_fewer_cases_than_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process validates on one at least."""
    run_identity = identity.RunIdentity(str(tmp_path / "state.pt"), [[], [{"image": "scan"}]], max_epochs=1)
    monkeypatch.setattr(identity.idist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"validation.*: holds 1 case\(s\), 2 processes take one each at least"):
        run_identity.check()
    assert list(tmp_path.iterdir()) == []


@each_bundle
def test_overlays_have_places_of_their_own(bundle: str) -> None:
    """By default, no training writes the weights or the state of another one."""
    places: dict[str, tuple[str, ...]] = {}
    for stage in stages(bundle, "training"):
        parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, stage)))
        chosen = {name: value for name, value in small(bundle, stage).items() if name in ("member", "type")}
        parser.update(chosen)
        if "sgd" not in stage:  # a member's other optimizer
            names = ("weights", "state_file")
            places[f"{config_files(bundle, stage)} {chosen}"] = tuple(map(parser.get_parsed_content, names))
    for stems in COMBINED if bundle == ENSEMBLE else ():  # where workflows.yaml gives members names of their own
        files = [f"{REPO}/bundles/{bundle}/configs/{stem}.yaml" for stem in ("train", *stems.split())]
        parser = ConfigParser(ConfigParser.load_config_files(files))
        places[str(files)] = tuple(map(parser.get_parsed_content, ("weights", "state_file")))
    for found in zip(*places.values(), strict=True):
        assert len(set(found)) == len(found)


@each_bundle
def test_every_training_is_checked_before_long_work(bundle: str) -> None:
    found = 0
    for path in (REPO / "bundles" / bundle / "configs").glob("*.yaml"):
        for steps in ConfigParser.load_config_file(path).values():
            if isinstance(steps, list) and "$@train::trainer.run()" in steps:
                found += 1
                assert steps.index("$@identity.check()") < steps.index("@check_cases")
    assert found == 1


@pytest.mark.parametrize(("bundle", "stage"), [*((name, "train") for name in NAMES), (HADNET, "pretrain_student")])
def test_command_again(
    bundle: str,
    stage: str,
    phantoms: NamedPath,
    tiny_weights: NamedPath,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That of a finished run changes no file, with another setting it is invalid, and restarted keeps all weights."""
    models = copy(tiny_weights(bundle), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(bundle), "folder": tmp_path, "max_epochs": 1}
    run(bundle, stage, seed=1, **given)
    before, network = files(tmp_path), network_of(tmp_path)
    with caplog.at_level(logging.INFO):
        run(bundle, stage, seed=1, **given)
    assert files(tmp_path) == before
    assert "this run is finished after 1 epochs, nothing is done" in caplog.text
    assert "seed: 1 -> 2" in rejection(bundle, stage, seed=2, **given)
    run(bundle, stage, seed=2, restart="true", **given)
    (weights,) = (
        path.name for path in models.glob("*_previous.pt") if "state" not in path.name and "_2_" not in path.name
    )
    weights = weights.removesuffix("_previous.pt")
    kept = [load(models / f"{weights}{end}.pt") for end in ("_previous", "_2_previous", "")]
    assert same(kept[1], torch.load(_file(tmp_path, before, f"{weights}.pt"), weights_only=True))
    assert not any(same(kept[index], kept[index - 1]) for index in range(3))
    assert not same(network_of(tmp_path), network)


def _file(folder: Path, contents: dict[str, bytes], name: str) -> Path:
    """A file as it was."""
    path = folder / "as_it_was.pt"
    path.write_bytes(contents[str(folder / "models" / name)])
    return path


@pytest.mark.parametrize("bundle", [VNET, ENSEMBLE])
def test_cases_given_one_by_one(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """MONAI Label trains in one folder on the cases that there are: on one more, and as long again, without options."""
    models = copy(tiny_weights(bundle), tmp_path / "models")
    every = cases(bundle, phantoms(bundle))["training"]
    given: dict[str, Any] = {"data": phantoms(bundle), "folder": tmp_path, "train#dataset#data": every}
    run(bundle, "train", max_epochs=1, **given | {"train#dataset#data": every[:-1]})
    states = [load(models / "training_state.pt")]
    for end in ("", "_2"):  # with a case more, then as before
        run(bundle, "train", max_epochs=1, **given)
        states.append(load(models / "training_state.pt"))
        assert same(load(models / f"training_state{end}_previous.pt"), states[-2])
        assert epochs_of(models) == 1
    run(bundle, "train", max_epochs=2, **given)
    assert epochs_of(models) == 2
    kept = [load(models / f"training_state{end}_previous.pt") for end in ("", "_2")]
    assert same(kept, states[:2])  # gone on with
    assert not (models / "training_state_3_previous.pt").exists()


def test_weights_from_before_are_never_lost(tmp_path: Path) -> None:
    """However often a run starts that is killed before its first state."""
    path = tmp_path / "model.pt"
    for number in range(4):
        torch.save({"weight": torch.tensor([[float(number)]])}, path)
        engine = Engine(lambda engine, _: engine.state.metrics.update(dice=0.5))
        engine.state.key_metric_name = "dice"
        resume.BestModel(nn.Linear(1, 1, bias=False), str(path)).attach(engine)
        engine.run([0])
    kept = [load(tmp_path / f"model{end}.pt") for end in ("_previous", "_2_previous", "_3_previous", "_4_previous")]
    assert [float(weights["weight"]) for weights in kept] == [0, 1, 2, 3]


@pytest.mark.gate
@each_bundle
def test_federated_rounds(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Every round of MONAI's client starts from the server's weights, with a fresh optimizer, and learns.

    A state that lies there has no part in it. MONAI's client takes supervised trainings only: HAD-Net's are the stages
    before the last.
    """
    models = copy(tiny_weights(bundle), tmp_path / "models")
    stage, stems = ("pretrain_student", ["train", "pretrain"]) if bundle == HADNET else ("train", ["train"])
    given = arguments(bundle, stage, data=phantoms(bundle), folder=tmp_path)
    settings = {name: value for name, value in given.items() if name not in ("run_id", "config_file", "max_epochs")}
    state = given.get("state_file", "training_state.pt")
    (models / state).write_bytes(b"of no round")
    client = MonaiAlgo(
        str(REPO / "bundles" / bundle),
        config_train_filename=[f"configs/{stem}.yaml" for stem in stems],
        config_evaluate_filename=None,
        train_kwargs=settings,
        send_weight_diff=False,
    )
    client.initialize()
    trainer, started, rates, class_weights = client.trainer, [], [], []
    assert trainer is not None

    def note() -> None:
        started.append({name: value.clone() for name, value in trainer.network.state_dict().items()})
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        class_weights.append(getattr(trainer.loss_function, "weight", torch.ones(1)).tolist())
        assert not trainer.optimizer.state

    trainer.add_event_handler(Events.EPOCH_STARTED, note)
    for number in range(3):
        network = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        weights = {name: value * 0.9 if value.is_floating_point() else value for name, value in network.items()}
        client.train(ExchangeObject(weights=weights))
        assert trainer.state.epoch == len(started) == number + 1
        assert same(started[-1], weights)
        trained = client.get_weights().weights
        assert [
            name for name, _ in trainer.network.named_parameters() if torch.equal(trained[name], weights[name])
        ] == []
    assert rates == [[group["initial_lr"] for group in trainer.optimizer.param_groups]] * 3  # no warm-up in one epoch
    assert class_weights[0] == class_weights[1] == class_weights[2]
    assert (models / state).read_bytes() == b"of no round"
