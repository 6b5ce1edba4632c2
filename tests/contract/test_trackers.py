"""TensorBoard and MLflow, read back from their own stores: every stage's curves are there, once and alike."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NAMES, NamedPath, each_bundle, package, recipe
from tests.support.distributed import LAUNCH, finished
from tests.support.runs import arguments, command_line, copy, each_stage, run
from tests.support.trajectories import EPOCHS, Trajectory, store
from tools.data.phantoms import phantoms as make_phantoms

Curves = dict[str, list[tuple[int, float]]]
BUNDLE = NAMES[0]


def tensorboard_curves(folder: Path) -> Curves:
    """Tag -> (step, value) of all event files of a folder, in the order in which TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    """The client of the store in a folder, and its runs, the latest first."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=store(folder))
    (experiment,) = (e for e in client.search_experiments() if e.name == "monai_experiment")
    return client, list(client.search_runs(experiment.experiment_id))


def mlflow_curves(client: Any, run_id: str) -> Curves:
    names = client.get_run(run_id).data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}


def same_curves(one: Curves, other: Curves) -> bool:
    """TensorBoard keeps single precision, MLflow double."""

    def same(first: list[tuple[int, float]], second: list[tuple[int, float]]) -> bool:
        return [step for step, _ in first] == [step for step, _ in second] and all(
            math.isclose(x, y, rel_tol=1e-6) or (math.isnan(x) and math.isnan(y))
            for (_, x), (_, y) in zip(first, second, strict=True)
        )

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def record_of(folder: Path) -> dict[str, Any]:
    """The only record in a folder of results."""
    (path,) = folder.glob("run_*.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def check_tracked(client: Any, tracked: Any, results: Path) -> None:
    """The run is over, its parameters are the settings, its artifact the record with the config as executed."""
    record = record_of(results)
    params = tracked.data.params
    assert tracked.info.status == "FINISHED"
    assert params["dataset_dir"] == record["config"]["dataset_dir"]
    assert params["seed"] == str(record["config"]["seed"])
    (artifact,) = client.list_artifacts(tracked.info.run_id)
    copy_of_record = json.loads(Path(client.download_artifacts(tracked.info.run_id, artifact.path)).read_text())
    assert copy_of_record == record
    assert record["finished"]
    assert not list(results.glob("config_*.json"))  # of MONAI, with passwords
    assert not {"tracking_uri", "experiment_name"} - record["config"].keys()


@each_stage
def test_stage_is_tracked(bundle: str, stage: str, trajectory: Trajectory) -> None:
    """TensorBoard and MLflow hold the same curves: a loss, a Dice and a learning rate, each once for every epoch."""
    results = trajectory(bundle, stage) / "eval"
    client, runs = mlflow_runs(results.parents[2])
    (tracked,) = (run for run in runs if run.data.params["output_dir"] == str(results))
    curves = mlflow_curves(client, tracked.info.run_id)
    assert same_curves(tensorboard_curves(results), curves)
    assert all([step for step, _ in values] == [1, EPOCHS] for values in curves.values())
    assert {"train_loss", "learning_rate"} <= curves.keys()
    assert any(name.startswith("val_dice") for name in curves)
    assert tracked.data.params["max_epochs"] == str(EPOCHS)
    check_tracked(client, tracked, results)


@pytest.mark.gate
@each_bundle
def test_evaluation_is_tracked(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """The run of an evaluation ends, so that no later one goes on in it."""
    copy(tiny_weights(bundle), tmp_path / "models")
    for name in ("one", "two"):
        output = {"output_dir": str(tmp_path / name), "tracking_uri": f"sqlite:///{tmp_path / 'one/mlruns.db'}"}
        run(bundle, "evaluate", data=phantoms(bundle), folder=tmp_path, tracking="mlflow", **output)
    client, tracked = mlflow_runs(tmp_path / "one")
    assert len(tracked) == 2
    check_tracked(client, tracked[1], tmp_path / "one")


@pytest.mark.gate
def test_resumed_training_continues_its_curves(
    phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is stopped in its second epoch and started again writes one MLflow run, and no epoch twice."""
    state = importlib.import_module(f"{package(BUNDLE)}.shared.checkpointing").TrainingState
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(BUNDLE), "folder": tmp_path, "tracking": "mlflow", "val_interval": 1}
    seed_epoch = state.seed_epoch

    def stop(self: Any, engine: Any) -> None:
        if engine.state.epoch == 2:
            raise InterruptedError
        seed_epoch(self, engine)

    with monkeypatch.context() as patch:
        patch.setattr(state, "seed_epoch", stop)
        with pytest.raises(RuntimeError):
            run(BUNDLE, "train", max_epochs=3, **given)
    run(BUNDLE, "train", max_epochs=4, **given)
    client, (tracked,) = mlflow_runs(tmp_path / "eval")
    curves = mlflow_curves(client, tracked.info.run_id)
    assert all([step for step, _ in values] == [1, 2, 3, 4] for values in curves.values())
    assert same_curves(tensorboard_curves(tmp_path / "eval"), curves)


@pytest.mark.gate
def test_without_mlflow(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    given = arguments(BUNDLE, "train", data=phantoms(BUNDLE), folder=tmp_path, max_epochs=1)
    program = f"import sys; sys.modules['mlflow'] = None; import monai.bundle; monai.bundle.run(**{given!r})"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=600)
    assert [step for step, _ in tensorboard_curves(tmp_path / "eval")["train_loss"]] == [1]
    assert record_of(tmp_path / "eval")["finished"]


@pytest.mark.nightly
@each_bundle
def test_one_of_two_processes_logs(bundle: str, tiny_weights: NamedPath, tmp_path: Path) -> None:
    data = make_phantoms(bundle, str(tmp_path / "data"), cases=10, **recipe(bundle)["phantoms"])
    copy(tiny_weights(bundle), tmp_path / "models")
    given = arguments(bundle, "multi_gpu_train", data=data, folder=tmp_path, max_epochs=EPOCHS, tracking="mlflow")
    del given["device"]
    done = finished([*LAUNCH, "-m", "monai.bundle", *command_line(given)])
    assert done.returncode == 0, done.stderr[-3000:]
    results = tmp_path / "eval"
    client, (tracked,) = mlflow_runs(results)
    curves = mlflow_curves(client, tracked.info.run_id)
    assert all([step for step, _ in values] == [1, EPOCHS] for values in curves.values())
    assert same_curves(tensorboard_curves(results), curves)
    assert len(list(results.glob("events.*"))) == 2  # of the trainer and the validator
    record = record_of(results)
    assert record["processes"] == 2
    assert record["command"].startswith("python -m monai.bundle run training --config_file ")
