"""Workloads of the kidney bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per case, of the case's name, takes the sizes. State dicts have the reference's key names,
without the heads of deep supervision; arrays are along (x, y, z) as in files. Classes are background, kidney and tumour;
background and both for the network with the large receptive field. Images are in HU.

| case | state dict | inputs | outputs |
|---|---|---|---|
| `training_step_dilated131` | network | `image` `(B, 1, ...)`; `label` `(B, 1, ...)` and `soft` `(B, C, ...)`; `learning_rate` | `loss`; `gradient`, the norm of all of it; `parameters`: mean of each parameter named `weight` after the step, sorted by name |
| `student` | network | `image` `(1, 1, x, y, z)` | `probabilities` `(1, C, x, y, z)`, mean of three orientations |
| `ensemble` | three networks, each with its name `dilated.`, `resnet.` or `unet.` in front | `image` `(1, 1, x, y, z)`; `tile`, `shifts` | `mean` and `spread` `(1, C, x, y, z)` of the members' probabilities |
| `sampler` | | `cases`: `image` and `label` `(1, x, y, z)`; `window`, `margin`, `axes`, `criterion`, `ratios`, `batch_size` | `accepted` `(B,)`, `windows` `(C,)` and `patch` `(1, h, w)`: see the function `sampler` |
| `export` | | | |
| `start_up` | | | |

A training step is distillation as in `train.yaml` and Adam, without dropout: its random numbers are each one's own.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from tools.benchmark import BenchmarkCase, Variant
from tools.benchmark.exports import export, probabilities
from tools.benchmark.variants import autocast, by_engine, start_up, times
from tools.per_bundle.ensemble_kd_kits_ct import benchmark_inputs as given
from tools.per_bundle.ensemble_kd_kits_ct.benchmark_inputs import BUNDLE, IN_ENSEMBLE, MEMBERS, SCAN, Size

PATCHES = 40
STUDENT, LOCATOR = "dilated35", "dilated131"
RATE = 0.01  # so that a step can be told from rounding

Outputs = dict[str, Any]


def benchmark_cases(device: torch.device) -> list[BenchmarkCase]:
    """Returns the workloads; on a CPU networks see less, and 3D networks half the tile."""
    cuda = device.type == "cuda"
    voxels, tile = ((192, 192, 96), 64) if cuda else ((64, 64, 48), 32)
    return [
        training_step_dilated131(device, size=(40 if cuda else 4, 55, 55)),
        student(device, voxels),
        ensemble(device, voxels, tile=tile),
        sampler(SCAN),
        export(BUNDLE, device, shape=(1, 1, 32, 32, 32), activation=probabilities),
        start_up(BUNDLE),
    ]


def training_step_dilated131(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of a step of the larger dilated network on a batch of `size` (B and the labels' edges)."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trainer, weights = given.trainer(LOCATOR, size, device=device, amp=fast, learning_rate=RATE)

        def train() -> Outputs:
            trainer.run()
            gradients = [value.grad for value in trainer.network.parameters() if value.grad is not None]
            return {
                "loss": trainer.state.output["loss"].detach(),
                "gradient": torch.nn.utils.get_total_norm(gradients),
                "parameters": torch.stack([weight.detach().double().mean() for weight in weights]),
            }

        return train

    return BenchmarkCase(
        name="training_step_dilated131",
        unit=f"step on labels of {times(size)} voxels",
        variants=by_engine(prepare, device, atol=2 * RATE, rtol=0.2),
        state_dict=functools.partial(given.reference_names, LOCATOR),
        inputs=lambda: {**given.batch(size, LOCATOR), "learning_rate": RATE},
        # The first step goes by the signs of gradients, and one in 16 may be next to 0.
        atol=0.15 * RATE,
        rtol=1e-3,
    )


def student(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of the student's probabilities for a scan of `size`, across all three axes."""

    def image() -> torch.Tensor:
        return given.scan(size)["image"][None]

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network, predictor = given.predicting(STUDENT, device)

        @torch.inference_mode()
        def segment() -> Outputs:
            with autocast(device, enabled=fast):
                return {"probabilities": predictor(image().to(device), network).cpu()}

        return segment

    return BenchmarkCase(
        name="student",
        unit=f"probabilities of {times(size)} voxels across three axes",
        variants=by_engine(prepare, device, atol=0.2, rtol=0),
        state_dict=functools.partial(given.reference_names, STUDENT),
        inputs=lambda: {"image": image()},
        rtol=1e-5,
    )


def ensemble(device: torch.device, size: Size, *, tile: int, shifts: int = 8) -> BenchmarkCase:
    """Returns the case of the ensemble's maps for a scan of `size`: `student` with three networks."""

    def image() -> torch.Tensor:
        return given.scan(size)["image"][None]

    def weights() -> given.Tensors:
        states = {key: given.reference_names(member) for key, member in IN_ENSEMBLE.items()}
        return {f"{key}.{name}": value for key, state in states.items() for name, value in state.items()}

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network = given.ensemble(device, tile=tile, shifts=shifts)

        @torch.inference_mode()
        def segment() -> Outputs:
            with autocast(device, enabled=fast):
                mean, spread = network(image().to(device)).cpu().chunk(2, 1)
            return {"mean": mean, "spread": spread}

        return segment

    return BenchmarkCase(
        name="ensemble",
        unit=f"maps of {times(size)} voxels by three networks; 3D ones see {tile}^3 of them, {shifts} times",
        variants=by_engine(prepare, device, atol=0.2, rtol=0),
        state_dict=weights,
        inputs=lambda: {"image": image(), "tile": tile, "shifts": shifts},
        rtol=1e-5,
    )


def sampler(size: Size) -> BenchmarkCase:
    """Returns the case of cutting a batch of patches from scans of `size`, not turned.

    Random numbers are each one's own, so what is drawn is not compared. But `accepted` says of every patch whether an
    organ is in it, `windows` how many windows there are for each class that is drawn, and `patch` is the image around
    the middle one, in the order of voxels in memory, of those of the first case across axis 0 that show class 1.
    """

    def inputs() -> Outputs:
        made = given.sampler(LOCATOR, size, batch_size=PATCHES)
        names = ("window", "margin", "axes", "criterion", "batch_size")
        options = {name: getattr(made, name) for name in names}
        return {**options, "cases": made.data, "ratios": made.shares, "classes": MEMBERS[LOCATOR].classes}

    def prepare() -> Callable[[], Outputs]:
        made = given.sampler(LOCATOR, size, batch_size=PATCHES)
        counts = [sum(len(table) for *_, table in rows) for rows in made.tables.values()]
        known = {"windows": torch.tensor(counts), "patch": given.one_patch(made)}
        indices = iter(range(len(made)))

        def draw() -> Outputs:
            return {**known, "accepted": (made[next(indices)]["label"] > 0).flatten(1).any(1)}

        return draw

    return BenchmarkCase(
        name="sampler",
        unit=f"batch of {PATCHES} patches of the network {LOCATOR}, cut from scans of {times(size)} voxels",
        variants={"eager": Variant(prepare=prepare)},
        inputs=inputs,
    )
