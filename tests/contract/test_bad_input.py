"""Bad input ends every workflow before it starts, with the case, the file and the rule; nothing is written."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_of_two, package, recipe, small
from tests.support.corruption import IMAGE, PAIR, cut, remove
from tests.support.runs import arguments, cases, command_line, copy, run
from tools import REPO

WIRED = {  # what shows that a workflow asks `check_cases`, for the right files and values
    "train": ("truncated", "affine", "foreign value"),
    "evaluate": ("NaN", "missing label", "foreign value"),
    "inference": ("garbled", "infinite", "4D"),
}
CORRUPTED = [(bundle, workflow, name) for bundle in NAMES for workflow, names in WIRED.items() for name in names]
INVALID = [
    pytest.param(bundle, workflow, rule, id=f"{bundle}-{workflow}-{'-'.join(rule['overrides'])}")
    for bundle in NAMES
    for rule in recipe(bundle)["invalid"]
    for workflow in rule["workflows"]
]


def rejection(
    bundle: str, workflow: str, *, data: Path, folder: Path, writes: Collection[str] = (), **overrides: Any
) -> str:
    """Message of the `InputError` with which a workflow ends; asserts that it wrote in the folders `writes` alone."""

    def present() -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in writes)

    before = present()
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        run(bundle, workflow, data=data, folder=folder, **overrides)
    assert present() == before
    return message_of(caught.value, bundle)


def parsing_rejection(bundle: str, workflow: str, item: str, **overrides: Any) -> str:
    """Message of the `InputError` with which an item of a workflow's config cannot be made."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, workflow)))
    parser.update(overrides)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        parser.get_parsed_content(item)
    return message_of(caught.value, bundle)


def message_of(error: BaseException, bundle: str) -> str:
    """Message of the `InputError` that led to an error."""
    expected, cause = importlib.import_module(f"{package(bundle)}.shared.validation").InputError, error
    while not isinstance(cause, expected):
        assert cause.__cause__ is not None, f"no InputError led to {error!r}"
        cause = cause.__cause__
    return str(cause)


@pytest.fixture
def data(bundle: str, phantoms: NamedPath, tmp_path: Path) -> Path:
    """A copy of the phantoms that a test may change."""
    return copy(phantoms(bundle), tmp_path / "data")


@pytest.fixture
def folder(bundle: str, tiny_weights: NamedPath, tmp_path: Path) -> Path:
    """Where a run finds weights and would write its results."""
    copy(tiny_weights(bundle), tmp_path / "run/models")
    return tmp_path / "run"


@pytest.mark.parametrize("name", [*IMAGE, *PAIR])
def test_kind(name: str, phantoms: NamedPath, tmp_path: Path) -> None:
    """Every kind, where it is decided: in the module that is the same in all bundles, on NRRD and NIfTI."""
    bundle = next(bundle for bundle in NAMES if list(phantoms(bundle).rglob("*.nrrd")))
    check = importlib.import_module(f"{package(bundle)}.shared.validation")
    data = copy(phantoms(bundle), tmp_path / "data")
    case = cases(bundle, data)["training"][0]
    file, rule = {**IMAGE, **PAIR}[name](case)
    with pytest.raises(check.InputError) as caught:
        check.check_cases(cases(bundle, data).values(), label_values=[[0, 255]])
    lines = str(caught.value).splitlines()[1:]
    assert all(line.startswith(f"  case {case['case']}: ") for line in lines)
    assert any(file in line and rule in line for line in lines)


@pytest.mark.parametrize(("bundle", "workflow", "name"), CORRUPTED)
def test_corrupted_case(bundle: str, workflow: str, name: str, data: Path, folder: Path) -> None:
    """One corrupted case in five is named; the others are not."""
    split = cases(bundle, data)
    case = split["validation"][0]
    file, rule = {**IMAGE, **PAIR}[name](case)
    rule = rule.replace("image", recipe(bundle).get("image", "image"))
    message = rejection(bundle, workflow, data=data, folder=folder)
    assert any(all(part in line for part in (case["case"], file, rule)) for line in message.splitlines())
    assert not any(other["case"] in message for other in split["training"])


@each_bundle
def test_empty_label(bundle: str, data: Path) -> None:
    """A training rejects a label map without any structure, unless scans without are among the bundle's cases."""
    case = cases(bundle, data)["training"][0]
    file, rule = PAIR["empty label"](case)
    given = small(bundle, "train") | {"dataset_dir": str(data)}
    if "empty label" in recipe(bundle).get("allowed", []):
        parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train")))
        parser.update(given)
        assert parser.get_parsed_content("check_cases") is None
    else:
        (line,) = parsing_rejection(bundle, "train", "check_cases", **given).splitlines()[1:]
        assert line.startswith(f"  case {case['case']}: {file}: {rule}")


@each_bundle
def test_all_problems_at_once(bundle: str, data: Path, folder: Path) -> None:
    split = cases(bundle, data)
    files = [remove(case["label"]) for case in split["training"]]
    message = rejection(bundle, "train", data=data, folder=folder)
    assert all(file in message for file in files)
    assert f"{len(files)} problem(s)" in message


@each_bundle
def test_case_in_both_data_lists(bundle: str, data: Path, folder: Path) -> None:
    split = cases(bundle, data)
    twice: dict[str, Any] = {"validate#dataset#data": [*split["validation"], split["training"][0]]}
    message = rejection(bundle, "train", data=data, folder=folder, **twice)
    assert f"case {split['training'][0]['case']}: {split['training'][0]['image']}: is in two splits" in message


SPLITS: dict[str, tuple[Callable[[list[str]], str], str]] = {
    "absent": (lambda _: "", "split file does not exist"),
    "malformed": (lambda names: json.dumps({"training": names})[:-5], "is no valid JSON"),
    "no object": (lambda names: json.dumps(names), "must hold lists of case names under 'training' and 'validation'"),
    "no validation": (
        lambda names: json.dumps({"training": names}),
        "must hold lists of case names under 'training' and 'validation'",
    ),
    "one name": (
        lambda names: json.dumps({"training": names[1:], "validation": names[0]}),
        "must hold lists of case names under 'training' and 'validation'",
    ),
    "unknown": (lambda names: json.dumps({"training": names, "validation": ["nobody"]}), "case nobody"),
    "twice": (lambda names: json.dumps({"training": names, "validation": names[:1]}), "is listed twice"),
}


@pytest.mark.parametrize("name", SPLITS)
@each_bundle
def test_split_file(bundle: str, name: str, phantoms: NamedPath, tmp_path: Path) -> None:
    """Each bundle reads split files by itself."""
    write, rule = SPLITS[name]
    data, file = phantoms(bundle), tmp_path / "split.json"
    names = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    if name != "absent":
        file.write_text(write(names))
    message = parsing_rejection(bundle, "train", "cases", dataset_dir=str(data), split_file=str(file))
    assert rule in message
    assert str(file) in message or name == "unknown"


@each_bundle
def test_empty_split(bundle: str, data: Path, folder: Path, tmp_path: Path) -> None:
    names = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"training": names, "validation": []}))
    assert "holds no case" in rejection(bundle, "train", data=data, folder=folder, split_file=str(file))


@pytest.mark.parametrize(("workflow", "exists"), [("train", True), ("inference", True), ("inference", False)])
@each_bundle
def test_dataset_dir(bundle: str, workflow: str, exists: bool, folder: Path, tmp_path: Path) -> None:
    """Neither a folder that is not there nor an empty one is silently taken for a data set."""
    target = tmp_path / "nowhere"
    if exists:
        target.mkdir()
    message = rejection(bundle, workflow, data=target, folder=folder)
    assert str(target) in message
    assert ("does not exist" in message) != exists


@pytest.mark.parametrize("workflow", ["evaluate", "inference"])
@each_bundle
def test_weights(bundle: str, workflow: str, data: Path, folder: Path) -> None:
    """Every file of weights is checked before the first scan is segmented."""
    shipped = {file: source for file, source in recipe(bundle)["weights"].items() if source["files"] == ["inference"]}
    for file, source in shipped.items():
        path, asked_for = folder / "models" / file, source.get("asked_for", {})
        good = path.read_bytes()
        path.unlink()
        message = rejection(bundle, workflow, data=data, folder=folder, **asked_for)
        assert f"{path}: there are no such weights" in message
        torch.save({"weight": torch.zeros(1)}, path)
        assert f"{path}: does not fit the chosen" in rejection(bundle, workflow, data=data, folder=folder)
        path.write_bytes(good)


@pytest.mark.parametrize(("bundle", "workflow", "rule"), INVALID)
def test_setting(bundle: str, workflow: str, rule: dict[str, Any], data: Path, folder: Path) -> None:
    """A setting that cannot be right is rejected, and the message says which and why."""
    found = rejection(bundle, workflow, data=data, folder=folder, writes=rule.get("writes", ()), **rule["overrides"])
    assert rule["message"] in found


@each_bundle
def test_state_of_another_run(bundle: str, data: Path, folder: Path) -> None:
    """A state file that is no state of this run is rejected, not used in part and not overwritten."""
    state = folder / "models/training_state.pt"
    run(bundle, "train", data=data, folder=folder, max_epochs=1)
    content = torch.load(state, weights_only=True)
    first = next(iter(content["network"]))
    renamed = {f"other.{name}" if name == first else name: value for name, value in content["network"].items()}
    for corrupt, rule in (
        (lambda: torch.save(content | {"network": renamed}, state), "does not fit this network or optimizer"),
        (lambda: torch.save({"trainer": content["trainer"]}, state), "is of another run, which differs in"),
        (lambda: cut(str(state)), "cannot be read as a file of tensors"),
    ):
        corrupt()
        before = state.read_bytes()
        message = rejection(bundle, "train", data=data, folder=folder, max_epochs=2, writes={"eval"})
        assert f"{state}: {rule}" in message
        assert state.read_bytes() == before


@pytest.mark.gate
@each_of_two
def test_command_ends_plainly(bundle: str, data: Path, folder: Path) -> None:
    """On the command line the message is the last thing to be read, without a traceback, and the command fails."""
    case = cases(bundle, data)["training"][0]
    given = arguments(bundle, "train", data=data, folder=folder)
    command = [sys.executable, "-m", "monai.bundle", *command_line(given)]
    file = remove(case["label"])
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    first, second = done.stderr.rstrip().splitlines()[-2:]
    assert first == "1 problem(s) in the input, nothing was started:"
    assert second == f"  case {case['case']}: {file}: label is missing"
