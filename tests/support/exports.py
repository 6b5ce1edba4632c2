"""The export commands of the documentation, given in this process, and runs with their outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from numpy.typing import NDArray
from torch import nn

from tests.conftest import config_files, recipe, small
from tests.support.cards import blocks, commands, pages
from tests.support.runs import arguments
from tools import REPO

Options = dict[str, str]


def folder(bundle: str) -> Path:
    return REPO / "bundles" / bundle


def command(bundle: str, verb: str, *, having: str = "") -> Options:
    """Options, by name, of the only command with that verb, and a certain option, on the page about exports."""
    _, details = pages(bundle)
    scripts = [block for page in (details, REPO / "docs/exports.md") for block in blocks(page)]
    start = ["python", "-m", "monai.bundle", *verb.split()]
    found = [given[len(start) :] for given in commands(*scripts) if given[: len(start)] == start]
    (line,) = [given for given in found if not having or having in given]
    return {name.removeprefix("--"): value for name, value in zip(line[::2], line[1::2], strict=True)}


def export_settings(bundle: str) -> dict[str, Any]:
    """What the tests of exports must know of a bundle: `inputs`, `latency` and perhaps `overrides` of inference."""
    return {"overrides": {}, **recipe(bundle)["exports"]}


def words(options: Options) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


class Engine(nn.Module):
    """Stands in for a TensorRT engine: TorchScript that takes inputs of one shape, in batches of some sizes."""

    def __init__(self, network: nn.Module, *, shape: list[int], batch: list[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shape", torch.tensor(shape[1:]))
        self.register_buffer("batch", torch.tensor(batch))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        least, most = int(self.batch[0]), int(self.batch[1])  # type: ignore[index]
        fits = torch.equal(torch.tensor(x.shape[1:]), self.shape)  # type: ignore[arg-type]
        if not fits or x.shape[0] < least or x.shape[0] > most:
            raise ValueError("the engine was made for another shape")
        return self.network(x)


def stand_in(
    model: nn.Module,
    precision: str,
    input_shape: list[int],
    dynamic_batchsize: list[int] | None = None,
    **others: Any,
) -> torch.jit.ScriptModule:
    """Takes the arguments of MONAI's `convert_to_trt`."""
    assert precision in ("fp32", "fp16")
    least, *_, most = dynamic_batchsize or [input_shape[0]] * 2
    engine = Engine(torch.jit.script(model.eval()), shape=list(input_shape), batch=[least, most])
    script: torch.jit.ScriptModule = torch.jit.script(engine.eval())
    return script


def engine_size(bundle: str, **overrides: Any) -> list[int]:
    """Spatial size of what the network sees with the overlay for engines."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference_trt"))
    parser.update(overrides)
    size = parser.get_parsed_content(recipe(bundle)["workflows"]["inference_trt"]["engine"])
    return [size] * 2 if isinstance(size, int) else list(size)


def tiny_engine(bundle: str) -> list[int]:
    """Shape of the input of an engine in tests."""
    _, channels, *_ = json.loads(command(bundle, "trt_export")["input_shape"])
    return [1, channels, *engine_size(bundle, **small(bundle, "inference_trt"))]


def make(bundle: str, verb: str, target: Path, *, weights: Path, tiny: bool = False, **given: str) -> Path:
    """Gives the card's export command, with weights and target of its own; returns the file that it writes.

    Of a `tiny` network where that is asked for; an engine is then for the size of scans in tests.
    """
    options = command(bundle, verb)
    path = target / Path(options["filepath"]).name
    options |= {"ckpt_file": str(weights), "filepath": str(path), **given}
    if tiny:
        options |= {name: str(value) for name, value in recipe(bundle)["tiny"].items()}
    if verb == "trt_export":
        options["input_shape"] = str(tiny_engine(bundle))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder(bundle))
        patch.setattr(monai.bundle.scripts, "convert_to_trt", stand_in)
        fire.Fire(getattr(monai.bundle, verb), command=words(options))
    return path


def segment(bundle: str, workflow: str, *, data: Path, folder: Path, **overrides: Any) -> None:
    """Runs a workflow whose network is a file: nothing sets sizes of it."""
    given = arguments(bundle, workflow, data=data, folder=folder, **overrides)
    try:
        monai.bundle.run(logging_file=False, **{k: v for k, v in given.items() if not k.startswith("network_def#")})
    finally:
        set_determinism(None)


def masks(results: Path) -> dict[str, NDArray[Any]]:
    found = sorted(results.rglob("*.nii.gz"))
    return {str(path.relative_to(results)): np.asarray(nibabel.load(path).dataobj) for path in found}


def assert_equal_masks(found: Path, expected: Path) -> None:
    one, other = masks(found), masks(expected)
    assert one.keys() == other.keys()
    assert {name for name in one if not np.array_equal(one[name], other[name])} == set()
    assert len(set().union(*(np.unique(mask) for mask in other.values()))) > 1  # something was found
