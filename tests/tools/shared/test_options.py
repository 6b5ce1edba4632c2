"""Options of `monai.bundle run`: each becomes what its default is, or the run ends before anything is built."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import pytest
from monai.bundle import ConfigWorkflow

from tests.conftest import NAMES, config_files, package, workflows
from tests.support.runs import arguments, run_id
from tools import REPO

COOP, ENSEMBLE, HADNET, LACHINOV, VNET = NAMES
PROGRAM = Path(monai.bundle.__file__).with_name("__main__.py")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a workflow's first step alone, with options as Python values or as the words of a command line."""
    finished: list[ConfigWorkflow] = []
    monkeypatch.setattr(ConfigWorkflow, "finalize", lambda self: finished.append(self))

    def start(bundle: str, workflow: str, *words: str, files: list[str] | None = None, **given: Any) -> Any:
        first = {"run_id": f"{run_id(bundle, workflow)}::0", "config_file": files or config_files(bundle, workflow)}
        if words:
            command = ["run", f"--config_file={first['config_file']}", f"--run_id={first['run_id']}", *words]
            monkeypatch.setattr(sys, "argv", [str(PROGRAM), *command, "--logging_file=False"])
            fire.Fire(monai.bundle, command=sys.argv[1:])
        else:
            monai.bundle.run(**first, logging_file=False, **given)
        return finished.pop().parser

    return start


def rejection(start: Any, *args: Any, **given: Any) -> list[str]:
    """The problems with which a run ends, a line for each."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        start(*args, **given)
    error: BaseException | None = caught.value
    while error is not None and type(error).__name__ != "InputError":
        error = error.__cause__
    assert error is not None, repr(caught.value)
    return [line.strip() for line in str(error).splitlines()[1:]]


@pytest.mark.parametrize("bundle", [VNET])  # the workflow tests show it of the others
def test_settings_of_all_workflows_are_taken(bundle: str, started: Any, tmp_path: Path) -> None:
    """As Python values, which stay as they are."""
    for workflow in workflows(bundle):
        if workflow.endswith("_trt"):
            continue
        given = arguments(bundle, workflow, data=tmp_path, folder=tmp_path)
        values = {name: value for name, value in given.items() if name not in ("run_id", "config_file")}
        parser = started(bundle, workflow, **values)
        for name, value in values.items():
            assert parser[name.replace("#", "::")] == value, (workflow, name)


TAKEN: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "booleans": (VNET, "inference", ("--locate", "false", "--amp=FALSE"), {"locate": False, "amp": False}),
    "a boolean by itself": (HADNET, "train", ("--restart", "--cut", "true"), {"restart": True, "cut": True}),
    "false of a dropout": (HADNET, "train", ("--teacher_dropout", "false"), {"teacher_dropout": False}),
    "null": (VNET, "train", ("--split_file", "null", "--start", "None"), {"split_file": None, "start": None}),
    "null of a reference": (HADNET, "train", ("--start", "None"), {"start": None}),
    "null in a component": (VNET, "train", ("--network_def#norm", "null"), {"network_def::norm": None}),
    "no labels": (LACHINOV, "train", ("--pseudo_labels", "false"), {"pseudo_labels": False}),
    "a tuple": (VNET, "train", ("--pixdim", "1,1,1"), {"pixdim": [1.0, 1.0, 1.0]}),
    "an integral float": (VNET, "train", ("--max_epochs", "1e2"), {"max_epochs": 100}),
    "a float of a whole number": (LACHINOV, "ensemble_inference", ("--fraction", "0.5"), {"fraction": 0.5}),
    "a folder that is a number": (VNET, "train", ("--dataset_dir", "20261129"), {"dataset_dir": "20261129"}),
    "a folder with zeros": (VNET, "train", ("--dataset_dir", "007"), {"dataset_dir": "007"}),
    "a folder like a float": (VNET, "train", ("--ckpt_dir", "1e5"), {"ckpt_dir": "1e5"}),
    "a folder like a tuple": (VNET, "train", ("--ckpt_dir", "a,b"), {"ckpt_dir": "a,b"}),
    "a folder in quotes": (VNET, "train", ("--ckpt_dir", "'a b'"), {"ckpt_dir": "a b"}),
    "a name that is a number": (VNET, "train", ("--run_name", "0x10"), {"run_name": "0x10"}),
    "hyphens": (VNET, "train", ("--max-epochs", "3"), {"max_epochs": 3}),
    "an expression": (VNET, "train", ("--batch_size", "$1 + 2"), {"batch_size": "$1 + 2"}),
    "a new parameter": (VNET, "train", ("--network_def#attention_reduction", "4"), {}),
    "a word": (ENSEMBLE, "evaluate", ("--clip_source", "none"), {"clip_source": "none"}),
    "no resampling": (ENSEMBLE, "train", ("--pixdim", "false"), {"pixdim": False}),
    "no loading": (VNET, "inference", ("--load", "false"), {"load": False}),
    "part of a parameter": (HADNET, "train", ("--optimizer#weight_decay", "1e-5"), {"optimizer::weight_decay": 1e-5}),
    "a list for a parameter": (COOP, "inference", ("--preprocessing#transforms#2#upper", "[98.5]"), {}),
    "half a minute": (VNET, "multi_gpu_train", ("--timeout", "0.5"), {"timeout": 0.5}),
    "a name like a folder": (VNET, "train", ("--run_name", "bundles"), {"run_name": "bundles"}),
    "floats of sizes": (VNET, "train", ("--patch_size", "[96.0,1e2,96]"), {"patch_size": [96, 100, 96]}),
    "a whole rate": (VNET, "train", ("--learning_rate", "1"), {"learning_rate": 1.0}),
    "a layer and its arguments": (VNET, "train", ("--network_def#norm", "['group',{'num_groups':4}]"), {}),
    "the scan's own spacing": (COOP, "corrupt", ("--pixdim", "[-1,-1]"), {"pixdim": [-1.0, -1.0]}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_can_mean_one_thing_only(name: str, started: Any) -> None:
    bundle, workflow, words, expected = TAKEN[name]
    parser = started(bundle, workflow, *words)
    for setting, value in expected.items():
        assert repr(parser[setting]) == repr(value)


def test_paths(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`#` stays in them, also where `@` is, and `~` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    place = str(tmp_path / "a#1@b's \\ %")
    for given in (place, "~/a#1@b's \\ %"):
        assert started(VNET, "train", f"--dataset_dir={given}").get_parsed_content("dataset_dir") == place
    assert started(VNET, "train", "--dataset_dir", "a#1").get_parsed_content("dataset_dir") == "a#1"
    assert started(LACHINOV, "train", "--exclude", "['a#1']").get_parsed_content("exclude") == ["a#1"]
    sets = started(COOP, "evaluate", "--test_sets", "{'a':'K#1/x'}").get_parsed_content("test_sets")
    assert sets == {"a": "K#1/x"}
    assert started(VNET, "train", ckpt_dir=tmp_path / "x").get_parsed_content("weights") == f"{tmp_path}/x/model.pt"


# Of the training of the left atrium: words, and what is said of them.
INVALID = {
    "--max_epoch 3": "--max_epoch: is no option of these config files; did you mean --max_epochs?",
    "--patch_sise 3": "--patch_sise: is no option of these config files; did you mean --patch_size?",
    "--zzz 3": "--zzz: is no option of these config files$",
    "--trackings mlflow": "--trackings: is no option of these config files; did you mean --tracking?",
    "--experiment_name x": "--experiment_name: is no option",  # without a tracker
    "--network_def#channel [2]": "did you mean --network_def#channels?",
    "--train#trainer#max_epoch 2": "did you mean --train#trainer#max_epochs?",
    "--patch_size 96": r"--patch_size: must be a list of 3 numbers such as \[224, 144, 96\], .*; it is '96'",
    "--patch_size [96,96]": "--patch_size: must be a list of 3 numbers",
    "--patch_size [96,96,x]": "each must be a whole number such as 224; it is '.96,96,x.'",
    "--patch_size [96,": "--patch_size: must be a list of 3 numbers",
    "--batch_size [2]": "--batch_size: must be a whole number such as 2",
    "--batch_size two": "--batch_size: must be a whole number such as 2",
    "--max_epochs 1.5": "--max_epochs: must be a whole number",
    "--max_epochs True": "--max_epochs: must be a whole number",
    "--max_epochs None": "--max_epochs: must be a whole number",
    "--learning_rate nan": "--learning_rate: must be a number",
    "--learning_rate 1e999": "--learning_rate: must be a number",
    "--max_epochs {'a':1}": "--max_epochs: must be a whole number such as",
    "--amp \"{'a':1}\"": "--amp: must be true or false",
    f"--max_epochs 1{'0' * 400}": "--max_epochs: must be a whole number such as",
    "--restart 1": "--restart: must be true or false; it is '1'",
    "--axcodes None": "--axcodes: must be a text such as LPS",
    "--max_epochs 0": "--max_epochs: must be at least 1",
    "--train#trainer#max_epochs -1": "--train#trainer#max_epochs: must be at least 1",
    "--val_interval 0": "--val_interval: must be at least 1",
    "--batch_size 0": "--batch_size: must be at least 1",
    "--learning_rate -0.1": "--learning_rate: must be at least 0",
    "--seed -1": "--seed: must be at least 0",
    "--ema_momentum 1.5": "--ema_momentum: must be between 0 and 1",
    "--pixdim [0,1,1]": "--pixdim: must be more than 0",
    "--device gpu": "--device: must be a device that is here: cpu",
    "--device cuda:99": "--device: must be a device that is here: cpu",
    "--dataset_dir ''": "--dataset_dir: must be a path, it is empty",
    "--dataset_dir None": "--dataset_dir: must be a path",
    "--dataset_dir --amp false": "--dataset_dir: must be a path",
    f"--output_dir {REPO}/README.md": "must be a folder, .*README.md is a file",
    f"--ckpt_dir {REPO}/README.md/x": "must be a folder, .*README.md is a file",
    f"--split_file {REPO}": "--split_file: must be a file, .* is a folder",
    f"--start {REPO}": "--start: must be a file, .* is a folder",
    "--seed 1 --seed=2": "--seed: is given 2 times: 1, 2",
    "--dataset_dir /my scans": "scans: belongs to no option",
}


@pytest.mark.parametrize("words", INVALID)
def test_what_is_refused(words: str, started: Any) -> None:
    (line,) = rejection(started, VNET, "train", *shlex.split(words))
    assert re.search(INVALID[words], line), line


@pytest.mark.parametrize(
    ("bundle", "workflow", "word", "expected"),
    [
        (VNET, "inference", "--locate=no", "--locate: must be true or false; it is 'no'"),
        (COOP, "evaluate", "--structures=RV", "--structures: must be a list of texts such as"),
        (ENSEMBLE, "train", "--batch_size=null", "--batch_size: must be a number"),
        (LACHINOV, "train", "--pseudo_labels=", "--pseudo_labels: must be a path, it is empty"),
    ],
)
def test_what_else_is_refused(bundle: str, workflow: str, word: str, expected: str, started: Any) -> None:
    (line,) = rejection(started, bundle, workflow, word)
    assert line.startswith(expected)


def test_all_problems_at_once(started: Any) -> None:
    assert len(rejection(started, VNET, "train", max_epoch=1, batch_size=0, restart="perhaps")) == 3


def test_other_sources_of_options(started: Any, tmp_path: Path) -> None:
    """A file of arguments counts like the command line; an overlay, and expressions, may bring ids of their own."""
    overlay, arguments_file = tmp_path / "overlay.yaml", tmp_path / "arguments.yaml"
    overlay.write_text("steps_to_take: 3\nmax_epochs: $@steps_to_take * @factor\n")
    arguments_file.write_text("learning_rate: 1e-3\nfactor: 2\n")
    files = [*config_files(VNET, "train"), str(overlay)]
    parser = started(VNET, "train", files=files, args_file=str(arguments_file), steps_to_take=5.0)
    assert parser.get_parsed_content("max_epochs") == 10
    assert parser["learning_rate"] == 1e-3
    arguments_file.write_text("learning_rates: 1e-3\nbatch_size: null\n")
    first, second = rejection(started, VNET, "train", args_file=str(arguments_file))
    assert first.startswith("--learning_rates: is no option")
    assert second.startswith("--batch_size: must be a whole number")


def test_own_overlays(started: Any, tmp_path: Path) -> None:
    """Their settings are judged as options are; the ids that they bring are theirs."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("restart: 'false'\nlearning_rate: 1e-3\ndataset_dir: a#b\nloss: {_target_: DiceLoss}\nmine: 1\n")
    files = [*config_files(VNET, "train"), str(overlay)]
    parser = started(VNET, "train", files=files)
    assert (parser["restart"], parser["learning_rate"]) == (False, 1e-3)
    assert parser.get_parsed_content("dataset_dir") == "a#b"
    assert started(VNET, "train", files=files, restart="true", mine=2)["restart"] is True
    overlay.write_text("patch_size: 96\n")
    (line,) = rejection(started, VNET, "train", files=files)
    assert line.startswith(f"{overlay}: patch_size must be a list of 3 numbers")


def test_tracking_brings_its_own_options(started: Any, tmp_path: Path) -> None:
    words = ("--tracking", "mlflow", "--experiment_name", "x", "--tracking_uri", f"file://{tmp_path}")
    assert started(VNET, "train", *words)["experiment_name"] == "x"


def bundle_copy(bundle: str, target: Path) -> Path:
    """Configs and package of a bundle at another place."""
    for name in ("configs", package(bundle)):
        shutil.copytree(REPO / "bundles" / bundle / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_code_of_another_copy_is_refused(started: Any, tmp_path: Path) -> None:
    other = bundle_copy(VNET, tmp_path / "copy")
    (line,) = rejection(started, VNET, "train", files=[str(other / "configs/train.yaml")])
    assert str(other) in line
    assert str(REPO / "bundles" / VNET) in line
    overlay = [*config_files(VNET, "train"), str(other / "configs/train_locator.yaml")]
    assert len(rejection(started, VNET, "train", files=overlay)) == 1


def test_metadata_of_another_bundle_is_refused(started: Any, tmp_path: Path) -> None:
    metadata = REPO / "bundles" / HADNET / "configs/metadata.json"
    (line,) = rejection(started, VNET, "train", meta_file=str(metadata))
    assert str(metadata) in line
    moved = shutil.copy(metadata, tmp_path / "mine.json")
    (line,) = rejection(started, VNET, "train", meta_file=str(moved))
    assert "is the metadata of another bundle, 'HAD-Net" in line
    started(VNET, "train", meta_file=str(shutil.copy(REPO / "bundles" / VNET / "configs/metadata.json", moved)))


def test_links_to_a_bundle_are_the_bundle(started: Any, tmp_path: Path) -> None:
    link = tmp_path / "renamed"
    link.symlink_to(REPO / "bundles" / VNET)
    started(VNET, "train", files=[str(link / "configs/train.yaml")])


@pytest.mark.gate
def test_a_command_line(tmp_path: Path) -> None:
    """In a folder with another copy, whose code would run: status 1, and nothing but the reason."""
    here, other = bundle_copy(VNET, tmp_path / "here"), bundle_copy(VNET, tmp_path / "other")
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    for file, words, expected in (
        (other, (), f"is of the bundle in {other}, but the code that runs is that of {here}"),
        (here, ("--max_epoch", "3", "--restart", "false"), "--max_epoch: is no option"),
    ):
        done = subprocess.run(
            [*command, str(file / "configs/train.yaml"), *words], cwd=here, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert "1 problem(s)" in done.stderr


def names_of(bundle: str) -> Mapping[str, Any]:
    """The module with the ranges, identical in every bundle."""
    return vars(importlib.import_module(f"{package(bundle)}.shared.option_types"))


def test_every_range_is_of_a_setting() -> None:
    """A name in the tables that no config has is a mistake there."""
    texts = [path.read_text(encoding="utf-8") for path in REPO.glob("bundles/*/configs/*.yaml")]
    kinds = names_of(VNET)
    for name in [*kinds["RANGES"], *kinds["PATHS"]]:
        assert any(f"\n{name}:" in text for text in texts), name
