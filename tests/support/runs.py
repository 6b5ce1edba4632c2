"""Runs a bundle's workflows in this process, on the CPU, with networks so small that a run takes a second."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from tests.conftest import NAMES, config_files, package, recipe, small, workflows

Case = Mapping[str, str]
IDS = ("evaluating", "inference", "training")  # an evaluation is an overlay of a training and defines both


def run_id(bundle: str, workflow: str) -> str:
    """What a workflow does: `training`, `evaluating` or `inference`, unless the recipe names another id."""
    if named := recipe(bundle)["workflows"][workflow].get("run_id"):
        return str(named)
    config = ConfigParser.load_config_files(config_files(bundle, workflow))
    return next(name for name in IDS if name in config)


def stages(bundle: str, kind: str) -> list[str]:
    """Workflows of a kind, in the order in which they must run; those that need several processes or a GPU left out."""
    here = [name for name in workflows(bundle) if "needs" not in recipe(bundle)["workflows"][name]]
    return [name for name in here if "multi_gpu" not in name and run_id(bundle, name) == kind]


def is_variant(bundle: str, stage: str) -> bool:
    """Whether a training differs from another in nothing but settings."""
    return "variant_of" in recipe(bundle)["workflows"][stage]


TRAININGS = [(bundle, stage) for bundle in NAMES for stage in stages(bundle, "training")]
each_stage = pytest.mark.parametrize(("bundle", "stage"), [pair for pair in TRAININGS if not is_variant(*pair)])
each_variant = pytest.mark.parametrize(("bundle", "stage"), [pair for pair in TRAININGS if is_variant(*pair)])


def arguments(bundle: str, workflow: str, *, data: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments of `monai.bundle.run`: weights go to `folder / "models"`, results to `folder / "eval"`."""
    config = ConfigParser.load_config_files(config_files(bundle, workflow))
    tiny = {key: value for key, value in recipe(bundle)["tiny"].items() if key.partition("#")[0] in config}
    paths = {"dataset_dir": str(data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
    common = {name: value for name, value in {**paths, "device": "cpu", "amp": False}.items() if name in config}
    run = {"run_id": run_id(bundle, workflow), "config_file": config_files(bundle, workflow)}
    return run | common | small(bundle, workflow) | tiny | overrides


def run(bundle: str, workflow: str, *, data: Path, folder: Path, **overrides: Any) -> None:
    """Runs a workflow; afterwards the process is as random as before."""
    try:
        given = arguments(bundle, workflow, data=data, folder=folder, **overrides)
        monai.bundle.run(logging_file=False, **given)
    finally:
        set_determinism(None)
        locks = sys.modules.get(f"{package(bundle)}.shared.locks")
        if locks is not None:  # as at the end of a process
            locks.release_all()


def command_line(given: Mapping[str, Any]) -> list[str]:
    """The same arguments as words after `python -m monai.bundle`."""
    words = ["run", given["run_id"]]
    for name, value in given.items():
        if name != "run_id":
            words += [f"--{name}", str(value)]
    return words


def cases(bundle: str, data: Path) -> dict[str, list[Case]]:
    """The cases of a data folder as the bundle's training config splits them."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train")))
    parser.update({**small(bundle, "train"), "dataset_dir": str(data)})
    found = {"training": "train::dataset::data", "validation": "validate::dataset::data"}
    return {split: parser.get_parsed_content(name) for split, name in found.items()}


def prediction(results: Path, case: Case, *, data: Path) -> Path:
    """The mask of a case: it lies in the results as the scan in the data folder, named after the scan or the case."""
    scan = Path(case["image"]).relative_to(data)
    names = {stem(scan), case["case"]}
    found = {
        path for name in names for path in results.rglob(str(scan.parent / f"{name}_*")) if "_unc_" not in path.name
    }
    (path,) = found
    return path


def scan_files(bundle: str, case: Case) -> list[Path]:
    """The files of a scan: its image and, where it has several sequences, those beside it."""
    image = Path(case["image"])
    first, others = recipe(bundle).get("image", "image"), recipe(bundle).get("beside", [])
    return [image, *(image.with_name(image.name.replace(first, other)) for other in others)]


def stem(path: Path) -> str:
    """File name without what names the format."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def load(path: Path) -> Any:
    """Content of a file of weights or training state."""
    return torch.load(path, weights_only=True)


def network_of(folder: Path) -> Mapping[str, torch.Tensor]:
    """The network of the only training state in a folder, as it was after the last epoch."""
    (path,) = (folder / "models").glob("*state.pt")
    network: Mapping[str, torch.Tensor] = load(path)["network"]
    return network


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def copy(folder: Path, target: Path) -> Path:
    """Copies a data folder or a folder of weights; returns the copy."""
    return Path(shutil.copytree(folder, target))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejection(bundle: str, stage: str, **given: Any) -> str:
    """Message of the `InputError` with which a training ends; it leaves every file as it was."""
    before = files(given["folder"])
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        run(bundle, stage, **given)
    error: BaseException | None = caught.value
    while error is not None and type(error).__name__ != "InputError":
        error = error.__cause__
    assert error is not None, f"no InputError led to {caught.value!r}"
    assert files(given["folder"]) == before
    return str(error)


def epochs_of(models: Path, name: str = "training_state.pt") -> int:
    trainer = load(models / name)["trainer"]
    return int(trainer["iteration"] // trainer["epoch_length"])
