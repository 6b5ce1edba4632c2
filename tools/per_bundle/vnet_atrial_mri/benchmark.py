"""Workloads of the left-atrium bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per row, of the row's name, takes the sizes. State dicts have the reference's key names **and axis order**:
their kernels are for arrays `(z, y, x)`. All arrays, among inputs and outputs alike, have MONAI's order `(x, y, z)`: a
baseline turns its inputs with `permute(0, 1, 4, 3, 2)` in its preparation, and dense outputs back before it returns them.

| row | state dict | inputs | outputs |
|---|---|---|---|
| `training_step`, `training_step_attention` | network | `image` `(B, 1, x, y, z)` float32, `label` the same in {0, 1} | `loss` before the step; `gradient` `(8,)` of the bias of the very first convolution, the end of the backward pass |
| `patch_inference` | network | `image` `(1, 1, x, y, z)` | `logits`, the same shape |
| `whole_volume` | segmentation network | `image` uint8 `(x, y, z)` in LPS order, `spacing` in mm, `patch_size`, `locator`: a state dict | `mask` uint8 `(x, y, z)` |
| `level_set` | | `label` uint8 `(x, y, z)` | `level_set` int16 |
| `loading` | | `path` of an NRRD file | `image` float32 `(x, y, z)` |
| `preparation` | | `image`, `label`: paths; `patch_size` | `image` as it is, `label` in {0, 1}, both float32 `(1, x, y, z)`: the label's box with a third of the patch as margin on each side |
| `augmentation` | | `image`, `label` as prepared | one random sample, of no use for a comparison |
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
from monai.transforms import LoadImage

from tools.benchmark import Row, Setting
from tools.benchmark.exports import export
from tools.benchmark.settings import autocast, by_engine, plain_and_fast, start_up, times
from tools.per_bundle.vnet_atrial_mri import benchmark_inputs as given
from tools.per_bundle.vnet_atrial_mri.benchmark_inputs import BUNDLE, SPACING, Size
from vnet_atrial import transforms
from vnet_atrial.handlers import scores

PATCH = (224, 144, 96)
SCAN = (640, 640, 88)
CROP = (240, 147, 96)

Outputs = dict[str, Any]


def rows(device: torch.device) -> list[Row]:
    """Returns the workloads; networks are smaller on a CPU, images are the challenge's everywhere."""
    cuda = device.type == "cuda"
    return [
        training_step(device, (3, *PATCH) if cuda else (2, 64, 48, 32)),
        training_step(device, (2, *PATCH) if cuda else (2, 64, 48, 32), attention=True),
        patch_inference(device, PATCH if cuda else (112, 80, 48)),
        whole_volume(device, SCAN, patch_size=PATCH),
        level_set(CROP),
        loading(SCAN, patch_size=PATCH),
        preparation(device, SCAN, patch_size=PATCH),
        augmentation(device, SCAN, patch_size=PATCH),
        metrics(CROP),
        export(BUNDLE, device, shape=(1, 1, *PATCH), activation=torch.sigmoid),
        start_up(BUNDLE),
    ]


def training_step(device: torch.device, size: Size, *, attention: bool = False) -> Row:
    """Returns the row of a training step on a batch of `size` (B, x, y, z)."""
    network = functools.partial(given.network, attention=attention)
    inputs = functools.partial(given.batch, size)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trained = copy.deepcopy(network()).to(device)
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

    return Row(
        name="training_step_attention" if attention else "training_step",
        unit=f"Dice and Adam step on {times(size)} voxels",
        settings=plain_and_fast(prepare, device, atol=1e-4, rtol=0.05),
        state_dict=lambda: given.reference_names(network(), "attention" if attention else "segmentation"),
        inputs=inputs,
        atol=1e-6,
        rtol=1e-3,
    )


def patch_inference(device: torch.device, size: Size) -> Row:
    """Returns the row of the segmentation network alone on a patch of `size` (x, y, z)."""
    inputs = functools.partial(given.batch, (1, *size))

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network = copy.deepcopy(given.network()).to(device).eval()
        image = inputs()["image"].to(device)

        @torch.inference_mode()
        def forward() -> Outputs:
            with autocast(device, enabled=fast):
                return {"logits": network(image)}

        return forward

    return Row(
        name="patch_inference",
        unit=f"logits of {times(size)} voxels",
        settings=plain_and_fast(prepare, device, atol=0.1, rtol=0.02),
        state_dict=lambda: given.reference_names(given.network(), "segmentation"),
        inputs=lambda: {"image": inputs()["image"]},
        atol=1e-4,
        rtol=1e-3,
    )


def whole_volume(device: torch.device, size: Size, *, patch_size: Size) -> Row:
    """Returns the row of `inference.yaml` from a volume of `size` (x, y, z) in memory to the mask on its grid."""
    volume = functools.partial(given.scan, size, patch_size=patch_size, noise=1)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(volume()["image"], patch_size=patch_size, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            return {"mask": evaluator.state.output[0]["pred"][0]}

        return segment

    return Row(
        name="whole_volume",
        unit=f"mask of {times(size)} voxels",
        settings=by_engine(prepare, device, atol=0, rtol=0),
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


def level_set(size: Size) -> Row:
    """Returns the row of the level set of one label of `size` (x, y, z)."""
    label = functools.partial(given.atrium, size)

    def prepare() -> Callable[[], Outputs]:
        mask = label()
        return lambda: {"level_set": transforms.level_set(mask).astype(np.int16)}

    return Row(
        name="level_set",
        unit=f"label of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: {"label": label()},
        atol=0,
        rtol=0,
        work=0,
    )


def loading(size: Size, *, patch_size: Size) -> Row:
    """Returns the row of reading one NRRD file of `size` (x, y, z)."""
    files = functools.partial(given.case, size, patch_size=patch_size)

    def prepare() -> Callable[[], Outputs]:
        reader, path = LoadImage(image_only=True), files()["image"]
        return lambda: {"image": reader(path)}

    return Row(
        name="loading",
        unit=f"NRRD file of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: {"path": files()["image"]},
        work=0,
    )


def preparation(device: torch.device, size: Size, *, patch_size: Size) -> Row:
    """Returns the row of the transforms of `train.yaml` from the files of one case to the cached item."""
    files = functools.partial(given.case, size, patch_size=patch_size)

    def prepare() -> Callable[[], Outputs]:
        chain, case = given.training_transforms("deterministic", patch_size=patch_size, device=device), files()
        return lambda: chain(case)

    return Row(
        name="preparation",
        unit=f"case of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: {**files(), "patch_size": patch_size},
        atol=1e-3,
        work=0,
    )


def augmentation(device: torch.device, size: Size, *, patch_size: Size) -> Row:
    """Returns the row of the random transforms of `train.yaml` on one cached item."""

    def prepare() -> Callable[[], Outputs]:
        parts = ("deterministic", "random")
        cache, draw = (given.training_transforms(part, patch_size=patch_size, device=device) for part in parts)
        item = cache(given.case(size, patch_size=patch_size))
        return lambda: draw(item)

    return Row(
        name="augmentation",
        unit=f"random patch of {times(patch_size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        work=0,
    )


def metrics(size: Size) -> Row:
    """Returns the row of the scores of one mask of `size` (x, y, z) against another.

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

    return Row(
        name="metrics",
        unit=f"two masks of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: masks() | {"spacing": SPACING},
        work=0,
    )
