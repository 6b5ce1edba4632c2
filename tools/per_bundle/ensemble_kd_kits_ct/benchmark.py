"""Workloads of the kidney bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per row, of the row's name or its first words, takes the sizes. State dicts have the reference's key names,
without the heads of deep supervision; arrays are along (x, y, z) as in files. Classes are background, kidney and tumour;
background and both for the network with the large receptive field. Images are in HU.

| row | state dict | inputs | outputs |
|---|---|---|---|
| `training_step_<network>` | network | `image` `(B, 1, ...)`; `label` `(B, 1, ...)` and `soft` `(B, C, ...)`; `learning_rate` | `loss`; `gradient`, the norm of all of it; `parameters`: mean of each parameter named `weight` after the step, sorted by name |
| `whole_volume_<network>`, `student` | network | `image` `(1, 1, x, y, z)` | `probabilities` `(1, C, x, y, z)`, mean of three orientations |
| `ensemble` | three networks, each with its name `dilated.`, `resnet.` or `unet.` in front | `image` `(1, 1, x, y, z)`; `tile`, `shifts` | `mean` and `spread` `(1, C, x, y, z)` of the members' probabilities |
| `windows_centre`, `windows_area` | | `cases`: `image` and `label` `(1, x, y, z)`; `window`, `margin`, `axes`, `criterion`, `ratios`, `batch_size` | `accepted` `(B,)`, `windows` `(C,)` and `patch` `(1, h, w)`: see the function `windows` |
| `augmentation` | | those, and `soft` `(C, x, y, z)` of the cases; `rotation`, standard deviation of the angle in degrees | those; `total` `(B, h, w)`: sums of the soft labels over the classes |
| `export` | | | |
| `start_up` | | | |

A training step is distillation as in `train.yaml` and Adam, without dropout: its random numbers are each one's own.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ensemble_kd.sampling import PatchBatches
from tools.benchmark import Row, Setting
from tools.benchmark.exports import export, probabilities
from tools.benchmark.settings import autocast, by_engine, start_up, times
from tools.per_bundle.ensemble_kd_kits_ct import benchmark_inputs as given
from tools.per_bundle.ensemble_kd_kits_ct.benchmark_inputs import BUNDLE, IN_ENSEMBLE, MEMBERS, SCAN, Size

PATCHES = 40
RATE = 0.01  # so that a step can be told from rounding
STEPS = {
    "dilated35": (40, 11, 11),
    "dilated131": (4, 55, 55),
    "resnet2d": (8, 64, 64),
    "unet2d": (8, 64, 64),
    "resnet3d": (2, 32, 32, 32),
    "unet3d": (2, 32, 32, 32),
}
STEPS_CUDA = {
    "dilated35": (40, 11, 11),
    "dilated131": (40, 55, 55),
    "resnet2d": (40, 64, 64),
    "unet2d": (40, 64, 64),
    "resnet3d": (2, 64, 64, 64),
    "unet3d": (2, 64, 64, 64),
}

Outputs = dict[str, Any]


def rows(device: torch.device) -> list[Row]:
    """Returns the workloads; on a CPU networks see less, and 3D networks half the tile."""
    cuda = device.type == "cuda"
    scan, large = ((192, 192, 96), (256, 256, 64)) if cuda else ((64, 64, 40), (160, 160, 24))
    voxels, tile = ((192, 192, 96), 64) if cuda else ((64, 64, 48), 32)
    odd = (scan[0] - 2, scan[1] - 2, scan[2] - 2)  # to a multiple of 8 the reference adds 8 zeros, which show
    return [
        *(training_step(device, member, size=size) for member, size in (STEPS_CUDA if cuda else STEPS).items()),
        whole_volume(device, "dilated35", size=scan),
        whole_volume(device, "dilated131", size=scan),
        whole_volume(device, "unet2d", size=odd),
        whole_volume(device, "dilated35", size=large, name="whole_volume_dilated35_large"),
        whole_volume(device, "dilated131", size=large, name="whole_volume_dilated131_large"),
        whole_volume(device, "dilated35", size=voxels, name="student"),
        ensemble(device, voxels, tile=tile),
        windows("windows_centre", "dilated35", size=SCAN),
        windows("windows_area", "dilated131", size=SCAN),
        augmentation(SCAN),
        export(BUNDLE, device, shape=(1, 1, 32, 32, 32), activation=probabilities),
        start_up(BUNDLE),
    ]


def training_step(device: torch.device, member: str, *, size: Size) -> Row:
    """Returns the row of a step of a student on a batch of `size` (B and the labels' edges)."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trainer, weights = given.trainer(member, size, device=device, amp=fast, learning_rate=RATE)

        def train() -> Outputs:
            trainer.run()
            gradients = [value.grad for value in trainer.network.parameters() if value.grad is not None]
            return {
                "loss": trainer.state.output["loss"].detach(),
                "gradient": torch.nn.utils.get_total_norm(gradients),
                "parameters": torch.stack([weight.detach().double().mean() for weight in weights]),
            }

        return train

    return Row(
        name=f"training_step_{member}",
        unit=f"step of the student on labels of {times(size)} voxels",
        settings=by_engine(prepare, device, atol=2 * RATE, rtol=0.2),
        state_dict=functools.partial(given.reference_names, member),
        inputs=lambda: {**given.batch(size, member), "learning_rate": RATE},
        # The first step goes by the signs of gradients, and one in 16 may be next to 0.
        atol=0.15 * RATE,
        rtol=1e-3,
    )


def whole_volume(device: torch.device, member: str, *, size: Size, name: str | None = None) -> Row:
    """Returns the row of a 2D network's probabilities for a scan of `size`, across all three axes."""

    def image() -> torch.Tensor:
        return given.scan(size)["image"][None]

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network, predictor = given.predicting(member, device)

        @torch.inference_mode()
        def segment() -> Outputs:
            with autocast(device, enabled=fast):
                return {"probabilities": predictor(image().to(device), network).cpu()}

        return segment

    return Row(
        name=name or f"whole_volume_{member}",
        unit=f"probabilities of {times(size)} voxels across three axes",
        settings=by_engine(prepare, device, atol=0.2, rtol=0),
        state_dict=functools.partial(given.reference_names, member),
        inputs=lambda: {"image": image()},
        rtol=1e-5,
    )


def ensemble(device: torch.device, size: Size, *, tile: int, shifts: int = 8) -> Row:
    """Returns the row of the ensemble's maps for a scan of `size`: what `student` does with one network, with three."""

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

    return Row(
        name="ensemble",
        unit=f"maps of {times(size)} voxels by three networks; 3D ones see {tile}^3 of them, {shifts} times",
        settings=by_engine(prepare, device, atol=0.2, rtol=0),
        state_dict=weights,
        inputs=lambda: {"image": image(), "tile": tile, "shifts": shifts},
        rtol=1e-5,
    )


def windows(name: str, member: str, *, size: Size) -> Row:
    """Returns the row of cutting a batch of patches from scans of `size`, not turned.

    Random numbers are each one's own, so what is drawn is not compared. But `accepted` says of every patch whether an
    organ is where the criterion wants it, `windows` how many windows there are for each class that is drawn, and
    `patch` is the image around the middle one, in the order of voxels in memory, of those of the first case across axis
    0 that show class 1.
    """

    def prepare() -> Callable[[], Outputs]:
        return _drawing(given.sampler(member, size, batch_size=PATCHES, rotation=0.0))

    return Row(
        name=name,
        unit=f"batch of {PATCHES} patches of the network {member}, cut from scans of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=functools.partial(_of_sampler, member, size, soft=False),
        work=0,
    )


def augmentation(size: Size) -> Row:
    """Returns the row of cutting and turning a batch of patches with soft labels, see `windows`; `patch` is not turned.

    Plain: images are interpolated linearly, as in `train.yaml`; `spline`: by cubic splines, as in the reference.
    """

    def prepare(*, mode: str) -> Callable[[], Outputs]:
        changes = {"train::patches::interpolation": mode}
        return _drawing(given.sampler("dilated35", size, batch_size=PATCHES, soft=True, **changes))

    return Row(
        name="augmentation",
        unit=f"batch of {PATCHES} turned patches with soft labels, cut from scans of {times(size)} voxels",
        settings={
            "plain": Setting(prepare=functools.partial(prepare, mode="linear")),
            "spline": Setting(prepare=functools.partial(prepare, mode="spline")),
        },
        inputs=functools.partial(_of_sampler, "dilated35", size, soft=True),
        work=0,
    )


def _drawing(sampler: PatchBatches) -> Callable[[], Outputs]:
    """Returns what draws one batch after the other."""
    counts = [sum(len(table) for *_, table in rows) for rows in sampler.tables.values()]
    known = {"windows": torch.tensor(counts), "patch": given.one_patch(sampler)}
    indices = iter(range(len(sampler)))
    middle = sampler.window // 2

    def draw() -> Outputs:
        batch = sampler[next(indices)]
        shown = batch["label"][:, 0] > 0
        at_centre = sampler.criterion == "patch-center-voxel"
        accepted = shown[:, middle, middle] if at_centre else shown.flatten(1).any(1)
        return {**known, "accepted": accepted} | ({"total": batch["soft"].sum(1)} if "soft" in batch else {})

    return draw


def _of_sampler(member: str, size: Size, *, soft: bool) -> Outputs:
    """Returns the inputs of a sampler that are the same for everyone."""
    sampler = given.sampler(member, size, batch_size=PATCHES, soft=soft)
    names = ("window", "margin", "axes", "criterion", "batch_size", "rotation")
    settings = {name: getattr(sampler, name) for name in names}
    return {**settings, "cases": sampler.data, "ratios": sampler.shares, "classes": MEMBERS[member].classes}
