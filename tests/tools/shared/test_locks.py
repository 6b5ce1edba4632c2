"""Two trainings never write the same files; those of one job do so together."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import NAMES, NamedPath, package
from tests.support.runs import copy, rejection, run

BUNDLE = NAMES[-1]
PACKAGE = package(BUNDLE)  # these modules are identical in every bundle
files, locks, record, resume = (
    importlib.import_module(f"{PACKAGE}.shared.{name}") for name in ("files", "locks", "record", "checkpointing")
)
InputError = importlib.import_module(f"{PACKAGE}.shared.validation").InputError
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    locks.release_all()


def start(task: Callable[..., Any], *given: Any) -> BaseProcess:
    process = FORK.Process(target=task, args=given)
    process.start()
    return process


def hold_and_wait(path: Path, marker: Path) -> None:
    locks.hold([path])
    marker.touch()
    time.sleep(600)


def holder(path: Path) -> BaseProcess:
    """A process that holds the lock of a file."""
    marker = path.with_name("marker")
    process = start(hold_and_wait, path, marker)
    while not marker.exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_second_training_is_refused_until_the_first_one_dies(tmp_path: Path) -> None:
    """By name of the file and of who writes it; a killed process leaves nothing that must be removed by hand."""
    state, weights = tmp_path / "training_state.pt", tmp_path / "model.pt"
    process = holder(weights)
    try:
        with pytest.raises(
            InputError, match=f"model.pt: another training writes it: process {process.pid} on .* since"
        ):
            locks.hold([state, weights])
        assert not (tmp_path / ".training_state.pt.lock").exists()  # what it had already is free again
        locks.hold([tmp_path / "other.pt"])
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    locks.hold([state, weights])
    locks.release([state, weights, tmp_path / "other.pt"])
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


def test_threads_of_one_process(tmp_path: Path) -> None:
    """A run goes on after a failed one of the same thread; another thread has to wait for it."""
    path, found = tmp_path / "model.pt", []

    def other() -> None:
        try:
            locks.hold([path])
        except InputError as error:
            found.append(str(error))

    def in_thread() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    locks.hold([path])
    locks.hold([path])
    in_thread()
    assert "another training in this process writes it" in found[0]
    locks.release([path])
    in_thread()  # ends with the lock held
    locks.hold([path])
    assert len(found) == 1


def test_links_to_a_folder_are_the_folder(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    process = holder(folder / "model.pt")
    try:
        with pytest.raises(InputError, match="another training writes it"):
            locks.hold([link / "model.pt"])
    finally:
        process.kill()
        process.join()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / ".linked.pt.lock").symlink_to(tmp_path / "file")
    for path in (tmp_path / "file/model.pt", *(tmp_path / f"{name}.pt" for name in ("model", "pipe", "linked"))):
        with pytest.raises(InputError, match=f"{path}: cannot be written"):
            locks.hold([path])
    assert (tmp_path / "file").read_bytes() == b""


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    locks.hold([tmp_path / "model.pt"])
    assert "there are no locks here" in caplog.text
    locks.release([tmp_path / "model.pt"])
    assert list(tmp_path.iterdir()) == []


def test_no_device_is_replaced(tmp_path: Path) -> None:
    """By a file: not by the bundles' writer, nor by that of the tools; a pipe stands for /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="something that is no file is there"), files.atomic_write(pipe):
        pass
    assert pipe.is_fifo()


def test_state_and_weights_are_two_files(phantoms: NamedPath, tmp_path: Path) -> None:
    file = str(tmp_path / "model.pt")
    given = {"data": phantoms(BUNDLE), "folder": tmp_path, "weights": file, "state_file": file}
    assert "is to hold the weights and the state" in rejection(BUNDLE, "train", **given)


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    """Those of this run, not those of another one that is saving in the same folder."""
    mark = "0123456789ab"
    mine = ["model.pt.partial", f".partial-{mark}-model.pt", f".partial-{mark}-model_2_previous.pt"]
    others = [f".partial-{mark}-locator.pt", f".partial-{mark}-other_model.pt", "model.pt", "model_previous.pt"]
    for name in mine + others:
        (tmp_path / name).touch()
    locks.hold([tmp_path / "model.pt"])
    locks.release_all()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_run_is_refused_while_another_one_trains(
    phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """Before it reads a scan; an evaluation is none of its business. Afterwards it trains, and leaves no lock."""
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(BUNDLE), "folder": tmp_path}
    process = holder(tmp_path / "models/model.pt")
    try:
        message = rejection(BUNDLE, "train", max_epochs=1, **given)
        assert f"another training writes it: process {process.pid} on " in message
        run(BUNDLE, "evaluate", **given)
    finally:
        process.kill()
        process.join()
    run(BUNDLE, "train", max_epochs=1, **given)
    assert not [path for path in (tmp_path / "models").iterdir() if path.name.startswith(".")]


def save_often(path: Path, number: int) -> None:
    for _ in range(150):
        resume.save_atomically({"weight": torch.full((1000,), float(number))}, path)
        record.keep(path)


def test_many_saves_of_two_processes(tmp_path: Path) -> None:
    """Where locks do not help, each of 300 saves is whole: the file is of one of them."""
    processes = [start(save_often, tmp_path / "model.pt", number) for number in (1, 2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(torch.load(tmp_path / "model.pt", weights_only=True)["weight"].unique()) == 1
    assert not list(tmp_path.glob(".partial*"))
