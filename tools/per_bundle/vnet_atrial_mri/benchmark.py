"""Workloads of the left-atrium bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per case, of the case's name, takes the sizes. State dicts have the reference's key names **and axis order**:
their kernels are for arrays `(z, y, x)`. All arrays, among inputs and outputs alike, have MONAI's order `(x, y, z)`: a
baseline turns its inputs with `permute(0, 1, 4, 3, 2)` in its preparation, and dense outputs back before it returns them.

| case | state dict | inputs | outputs |
|---|---|---|---|
| `training_step` | network | `image` `(B, 1, x, y, z)` float32, `label` the same in {0, 1} | `loss` before the step; `gradient` `(8,)` of the bias of the very first convolution, the end of the backward pass |
| `whole_volume` | segmentation network | `image` uint8 `(x, y, z)` in LPS order, `spacing` in mm, `patch_size`, `locator`: a state dict | `mask` uint8 `(x, y, z)` |
| `level_set` | | `label` uint8 `(x, y, z)` | `level_set` int16 |
| `preparation` | | `image`, `label`: paths; `patch_size` | `image` as it is, `label` in {0, 1}, both float32 `(1, x, y, z)`: the label's box with a third of the patch as margin on each side |
| `metrics` | | `prediction`, `label` `(x, y, z)`, `spacing` in mm | `dice`, `iou`, `precision`, `recall`, `hd` in mm |
| `export` | | | |
| `start_up` | | | |

A training step is forward pass, batch Dice loss, backward pass and Adam step (learning rate 3e-4). The weights of
`whole_volume` make both networks threshold their input beside all their arithmetic, between the scan's dark background
and its bright atrium whether intensities are raw or z-scored: every correct implementation finds the same mask.
"""  # noqa: E501

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss

from tools.benchmark import BenchmarkCase, Variant
from tools.benchmark.exports import export
from tools.benchmark.variants import autocast, by_engine, eager_and_fast, preparation, start_up, times
from tools.per_bundle.vnet_atrial_mri import benchmark_inputs as given
from tools.per_bundle.vnet_atrial_mri.benchmark_inputs import BUNDLE, SPACING, Size
from vnet_atrial import transforms
from vnet_atrial.handlers import scores

PATCH = (224, 144, 96)
SCAN = (640, 640, 88)
CROP = (240, 147, 96)

Outputs = dict[str, Any]


def benchmark_cases(device: torch.device) -> list[BenchmarkCase]:
    """Returns the workloads; networks are smaller on a CPU, images are the challenge's everywhere."""
    cuda = device.type == "cuda"
    return [
        training_step(device, (3, *PATCH) if cuda else (2, 64, 48, 32)),
        whole_volume(device, SCAN, patch_size=PATCH),
        level_set(CROP),
        preparation(
            SCAN,
            chain=functools.partial(given.preparing, patch_size=PATCH, device=device),
            files=functools.partial(given.case, SCAN, patch_size=PATCH),
            inputs={"patch_size": PATCH},
        ),
        metrics(CROP),
        export(BUNDLE, device, shape=(1, 1, *PATCH), activation=torch.sigmoid),
        start_up(BUNDLE),
    ]


def training_step(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of a training step on a batch of `size` (B, x, y, z)."""
    inputs = functools.partial(given.batch, size)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trained = copy.deepcopy(given.network()).to(device)
        image, label = (inputs()[key].to(device) for key in ("image", "label"))
        loss = DiceLoss(sigmoid=True, batch=True, smooth_nr=0, smooth_dr=1e-6)
        stem = trained.get_parameter("encoder.0.expand.bias")
        optimizer = torch.optim.Adam(trained.parameters(), lr=3e-4)
        scaler = torch.amp.GradScaler(device.type, enabled=fast and device.type == "cuda")

        def step() -> Outputs:
            optimizer.zero_grad()
            with autocast(device, enabled=fast):
                value = loss(trained(image), label)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            return {"loss": value.detach(), "gradient": stem.grad}

        return step

    return BenchmarkCase(
        name="training_step",
        unit=f"Dice and Adam step on {times(size)} voxels",
        variants=eager_and_fast(prepare, device, atol=1e-4, rtol=0.05),
        state_dict=lambda: given.reference_names(given.network(), "segmentation"),
        inputs=inputs,
        atol=1e-6,
        rtol=1e-3,
    )


def whole_volume(device: torch.device, size: Size, *, patch_size: Size) -> BenchmarkCase:
    """Returns the case of `inference.yaml` from a volume of `size` (x, y, z) in memory to the mask on its grid."""
    volume = functools.partial(given.scan, size, patch_size=patch_size, noise=1)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(volume()["image"], patch_size=patch_size, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            return {"mask": evaluator.state.output[0]["pred"][0]}

        return segment

    return BenchmarkCase(
        name="whole_volume",
        unit=f"mask of {times(size)} voxels",
        variants=by_engine(prepare, device, atol=0, rtol=0),
        state_dict=lambda: given.reference_names(given.thresholding(), "segmentation"),
        inputs=lambda: {
            "image": volume()["image"],
            "spacing": SPACING,
            "patch_size": patch_size,
            "locator": given.reference_names(given.thresholding(), "locator"),
        },
        atol=0,
        rtol=0,
    )


def level_set(size: Size) -> BenchmarkCase:
    """Returns the case of the level set of one label of `size` (x, y, z)."""
    label = functools.partial(given.atrium, size)

    def prepare() -> Callable[[], Outputs]:
        mask = label()
        return lambda: {"level_set": transforms.level_set(mask).astype(np.int16)}

    return BenchmarkCase(
        name="level_set",
        unit=f"label of {times(size)} voxels",
        variants={"eager": Variant(prepare=prepare)},
        inputs=lambda: {"label": label()},
        atol=0,
        rtol=0,
    )


def metrics(size: Size) -> BenchmarkCase:
    """Returns the case of the scores of one mask of `size` (x, y, z) against another.

    HD95 and ASD are computed but not compared: implementations differ in what a surface is and how they pool distances.
    """

    def masks() -> Outputs:
        return {"prediction": given.atrium(size, shift=0.02), "label": given.atrium(size)}

    def prepare() -> Callable[[], Outputs]:
        prediction, label = map(torch.from_numpy, masks().values())

        def score() -> Outputs:
            found = scores(prediction, label, spacing=SPACING)
            return {name: found[name] for name in ("dice", "iou", "precision", "recall", "hd")}

        return score

    return BenchmarkCase(
        name="metrics",
        unit=f"two masks of {times(size)} voxels",
        variants={"eager": Variant(prepare=prepare)},
        inputs=lambda: masks() | {"spacing": SPACING},
    )
