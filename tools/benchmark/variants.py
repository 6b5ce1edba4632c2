"""What the cases of every bundle have in common: precision, configs, and whole benchmark cases."""

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

from tools.benchmark.case import BenchmarkCase, Outputs, Variant, Work

Array = NDArray[Any]


class Prepare(Protocol):
    """Prepares the work of a case in full precision, or in the reduced precision of the device."""

    def __call__(self, *, fast: bool) -> Work:
        """Returns the work."""
        ...


def eager_and_fast(prepare: Prepare, device: torch.device, *, atol: float, rtol: float) -> dict[str, Variant]:
    """Returns `eager` in full precision and `fast` in mixed precision, with the tolerance of the latter."""
    return {
        "eager": Variant(prepare=functools.partial(prepare, fast=False)),
        "fast": Variant(prepare=functools.partial(prepare, fast=True), atol=atol, rtol=rtol),
    }


def by_engine(prepare: Prepare, device: torch.device, *, atol: float, rtol: float) -> dict[str, Variant]:
    """Returns what `eager_and_fast` does; without `fast` on a CPU, where MONAI's engines do not have it."""
    variants = eager_and_fast(prepare, device, atol=atol, rtol=rtol)
    return variants if device.type == "cuda" else {"eager": variants["eager"]}


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Returns a context in which matrix products and convolutions have the reduced precision of the device."""
    return torch.autocast(device.type, enabled=enabled)


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
    # No thread: its time would be another's.
    given = {"dataset::data": [{"image": image}], "dataloader::_target_": "DataLoader", "handlers": []}
    parser = config(bundle, "inference", changes={**given, **changes})
    parser["preprocessing::transforms"][0] = load
    steps = parser["postprocessing::transforms"]
    steps[:] = [step for step in steps if isinstance(step, str) or step["_target_"] != "SaveImaged"]
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


def preparation(
    size: tuple[int, ...],
    *,
    chain: Callable[[], Callable[[Any], Mapping[str, Any]]],
    files: Callable[[], Mapping[str, str]],
    inputs: Mapping[str, Any],
) -> BenchmarkCase:
    """Returns the case of the transforms of `train.yaml` from the files of one scan to the item that is cached.

    Args:
        size: voxels of the scan.
        chain: makes the transforms.
        files: makes the files, a path by key.
        inputs: what else a baseline needs.
    """

    def prepare() -> Work:
        made, given = chain(), dict(files())

        def read() -> Outputs:
            item = made(given)
            return {key: item[key] for key in ("image", "label")}

        return read

    return BenchmarkCase(
        name="preparation",
        unit=f"scan of {times(size)} voxels",
        variants={"eager": Variant(prepare=prepare)},
        inputs=lambda: {**files(), **inputs},
        atol=1e-3,
    )


def start_up(bundle: Path) -> BenchmarkCase:
    """Returns the case of a process that imports `monai.bundle`, without and with the whole package of the bundle."""
    modules = sorted(f"{path.parent.name}.{path.stem}" for path in bundle.glob("*/[!_]*.py"))

    def importing(*names: str) -> Variant:
        def process() -> None:
            environment = {**os.environ, "PYTHONPATH": str(bundle)}
            subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], env=environment, check=True)

        return Variant(prepare=lambda: process)

    variants = {"eager": importing("monai.bundle"), "with_package": importing("monai.bundle", *modules)}
    return BenchmarkCase(name="start_up", unit="fresh process", variants=variants)


def times(size: tuple[int, ...]) -> str:
    """Returns a size for the reader of the table, such as `192x192x10`."""
    return "x".join(map(str, size))
