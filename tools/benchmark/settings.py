"""What the rows of every bundle have in common: precision, configs, and the start of a process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray

from tools.benchmark.row import Row, Setting, Work

Array = NDArray[Any]


class Prepare(Protocol):
    """Prepares the work of a row in full precision, or in the reduced precision of the device."""

    def __call__(self, *, fast: bool) -> Work:
        """Returns the work."""
        ...


def plain_and_fast(prepare: Prepare, device: torch.device, *, atol: float, rtol: float) -> dict[str, Setting]:
    """Returns `plain` in full precision and `fast` in mixed precision, with the tolerance of the latter."""
    return {
        "plain": Setting(prepare=functools.partial(prepare, fast=False)),
        "fast": Setting(prepare=functools.partial(prepare, fast=True), atol=atol, rtol=rtol, dtype=half(device)),
    }


def by_engine(prepare: Prepare, device: torch.device, *, atol: float, rtol: float) -> dict[str, Setting]:
    """Returns what `plain_and_fast` does; without `fast` on a CPU, where MONAI's engines do not have it."""
    settings = plain_and_fast(prepare, device, atol=atol, rtol=rtol)
    return settings if device.type == "cuda" else {"plain": settings["plain"]}


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Returns a context in which matrix products and convolutions have the reduced precision of the device."""
    return torch.autocast(device.type, dtype=half(device), enabled=enabled)


def half(device: torch.device) -> torch.dtype:
    """Returns the reduced precision of a device."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def config(bundle: Path, *stems: str, changes: Mapping[str, Any]) -> ConfigParser:
    """Returns the parser of a config of the bundle, and of overlays, with values changed by id."""
    parser = ConfigParser()
    parser.read_config([bundle / "configs" / f"{stem}.yaml" for stem in stems])
    parser.update(dict(changes))
    return parser


def evaluator_in_memory(
    bundle: Path,
    image: Array,
    *,
    load: Callable[[Mapping[str, Array]], Mapping[str, torch.Tensor]],
    changes: Mapping[str, Any],
) -> Any:
    """Returns the evaluator of `inference.yaml` on an image in memory instead of files, which saves nothing.

    Args:
        bundle: folder of the bundle.
        image: voxels.
        load: stands in for the first transform; it takes `{"image": image}`.
        changes: values of the config by id.
    """
    # No thread: its time would be another's, and the counter of operations would not see it.
    given = {"dataset::data": [{"image": image}], "dataloader::_target_": "DataLoader", "handlers": []}
    parser = config(bundle, "inference", changes={**given, **changes})
    parser["preprocessing::transforms"][0] = load
    steps = parser["postprocessing::transforms"]
    steps[:] = [step for step in steps if step["_target_"] != "SaveImaged"]
    engine = parser.get_parsed_content("evaluator")
    engine.logger.setLevel("WARNING")
    return engine


def volume_in_memory(image: Array, *, steps: Sequence[float], channel: int | str = "no_channel") -> MetaTensor:
    """Returns an image in memory as `LoadImage` does one in a file.

    Args:
        image: voxels.
        steps: size of a voxel in mm along each axis, negative where the axis runs to the right, back or feet.
        channel: axis of its channels.
    """
    affine = torch.diag(torch.tensor([*steps, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "in memory", "original_channel_dim": channel}
    return MetaTensor(torch.as_tensor(image, dtype=torch.float32), affine=affine, meta=meta)


def start_up(bundle: Path) -> Row:
    """Returns the row of a process that imports `monai.bundle`, without and with the whole package of the bundle."""
    modules = sorted(f"{path.parent.name}.{path.stem}" for path in bundle.glob("*/[!_]*.py"))

    def importing(*names: str) -> Setting:
        def process() -> None:
            environment = {**os.environ, "PYTHONPATH": str(bundle)}
            subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], env=environment, check=True)

        return Setting(prepare=lambda: process)

    settings = {"plain": importing("monai.bundle"), "with_package": importing("monai.bundle", *modules)}
    return Row(name="start_up", unit="fresh process", settings=settings, work=0)


def times(size: tuple[int, ...]) -> str:
    """Returns a size for the reader of the table, such as `192x192x10`."""
    return "x".join(map(str, size))
