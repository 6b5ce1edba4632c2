"""The record that a run writes about itself, with every config of every bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed
import pytest
import torch
import yaml
from ignite.engine import Engine

from tests.conftest import NAMES, NamedPath, config_files
from tests.support.runs import cases, copy, run
from tools import REPO
from vnet_atrial.shared.record import record_run

VNET = "vnet_atrial_mri"
CONFIGS = sorted(path for name in NAMES for path in (REPO / "bundles" / name / "configs").glob("*.yaml"))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("run_*.json"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_every_run_records(path: Path) -> None:
    """Right before an engine runs, each list of steps records that engine, its handlers and its cases."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for steps in (value for value in config.values() if isinstance(value, list)):
        for before, step in zip(["", *steps], steps, strict=False):
            if engine := re.search(r"@((?:\w+::)?)(trainer|evaluator)\b", step if ".run(" in str(step) else ""):
                group, kind = engine.groups()
                given = f"@{group}{kind}, handlers=@{group}handlers, cases=@{group}dataset::data"
                assert before == f"$record_run(@output_dir, {given})"


def test_names_that_are_no_text_are_recorded(tmp_path: Path) -> None:
    """Names of files from other systems may be bytes that are no UTF-8."""
    name = b"M\xfcller.nii.gz".decode("utf-8", "surrogateescape")
    record_run(str(tmp_path), engine_of(), cases=[{"image": name}])
    assert records(tmp_path)[0]["cases"] == [{"image": name}]


@pytest.fixture(scope="module")
def recorded(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs and an inference, in one folder of results."""
    folder = tmp_path_factory.mktemp("recorded")
    copy(tiny_weights(VNET), folder / "models")
    trackers = ["https://me:s@secret@host/x", "https://x.org?mail=a@b.c"]
    (folder / "overlay.json").write_text(json.dumps({"trackers": trackers}))
    settings = {"config_file": [*config_files(VNET, "train"), str(folder / "overlay.json")], "learning_rate": 0.05}
    run(VNET, "train", data=phantoms(VNET), folder=folder, max_epochs=2, **settings)
    run(VNET, "inference", data=phantoms(VNET), folder=folder)
    return folder


def test_record_holds_what_was_run(recorded: Path, phantoms: NamedPath) -> None:
    inference, training = records(recorded / "eval")
    assert (training["run_id"], inference["run_id"]) == ("training", "inference")
    assert training["config"]["learning_rate"] == 0.05
    assert training["config"]["network_def"]["channels"] == [2, 4, 8, 16, 32]
    assert "_meta_" not in training["config"]
    metadata = json.loads((REPO / "bundles" / VNET / "configs/metadata.json").read_text())
    assert training["bundle"] == {"name": VNET, "version": metadata["version"]}
    assert training["versions"]["torch"] == str(torch.__version__)
    assert training["versions"]["nibabel"]
    split = cases(VNET, phantoms(VNET))
    assert training["cases"] == split["training"]
    assert {case["case"] for case in inference["cases"]} == {c["case"] for part in split.values() for c in part}
    assert training["paths"]["weights"] == str(recorded / "models/model.pt")
    assert training["paths"]["dataset_dir"] == str(phantoms(VNET))
    assert training["device"].startswith("cpu (")
    assert 0 < training["seconds"] < 600
    assert training["started"] <= training["finished"] <= inference["started"]


def test_no_password_is_recorded(recorded: Path) -> None:
    _, training = records(recorded / "eval")
    assert training["config"]["trackers"] == ["https://host/x", "https://x.org?mail=a@b.c"]
    assert "secret" not in str(training)


def engine_of(*, fails: bool = False) -> Engine:
    def step(_: Engine, __: Any) -> None:
        if fails:
            raise InterruptedError

    engine = Engine(step)
    engine.state.device = torch.device("cpu")
    return engine


def test_run_that_fails_has_no_end(tmp_path: Path) -> None:
    engine = engine_of(fails=True)
    record_run(str(tmp_path), engine)
    with pytest.raises(InterruptedError):
        engine.run([0])
    (record,) = records(tmp_path)
    assert record["finished"] is record["seconds"] is None
    assert record["config"] == {}  # there is no workflow
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in tmp_path.glob("run_run_*.json")]


def test_one_process_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignite.distributed, "get_rank", lambda: 1)
    engine = engine_of()
    record_run(str(tmp_path), engine)
    engine.run([0])
    assert not list(tmp_path.iterdir())


def test_learning_rate_is_that_of_the_epochs_begin(tmp_path: Path) -> None:
    engine = engine_of()
    group = {"lr": 0.5}
    engine.optimizer = SimpleNamespace(param_groups=[group])
    seen = []

    @engine.on(ignite.engine.Events.EPOCH_COMPLETED)
    def halve() -> None:
        seen.append(engine.state.metrics["learning_rate"])
        group["lr"] /= 2

    record_run(str(tmp_path), engine)
    engine.run([0], max_epochs=3)
    assert seen == [0.5, 0.25, 0.125]


def test_command_is_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/x/monai/bundle/__main__.py", "run", "training", "--patch_size", "[32, 32]", "--x", "['a','b']"]
    monkeypatch.setattr("sys.argv", words)
    record_run(str(tmp_path), engine_of())
    (record,) = records(tmp_path)
    assert record["command"] == "python -m monai.bundle run training --patch_size '[32, 32]' --x \"['a','b']\""
