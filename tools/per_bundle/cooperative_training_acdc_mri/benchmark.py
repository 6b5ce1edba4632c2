"""Workloads of the cardiac bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per row, of the row's name, takes the sizes. State dicts have the reference's key names, each with its network
in front (`image_encoder.general_encoder...`), **axis order and classes**: kernels are for arrays `(y, x)`, the classes are
1 LV, 2 MYO, 3 RV. All arrays, among inputs and outputs alike, have MONAI's order `(x, y)` and ACDC's classes 1 RV, 2 MYO,
3 LV: a baseline turns its inputs in its preparation, and what it returns back.

| row | state dict | inputs | outputs |
|---|---|---|---|
| `cooperative_step`, `standard_step`, `..._8` | network | `image` and `label` `(B, 1, x, y)` float32 | every loss with its weight, as named by `CooperativeTraining`; `gradient` `(1,)`, the norm of all of it |
| `stack_inference` | network | `image` `(1, 1, x, y, z)` | `logits` `(1, 4, x, y, z)` after one refinement |
| `whole_stack` | network | `image` int16 `(x, y, z)`, `spacing` and `pixdim` in mm, `patch_size` | `share` of the voxels of every class `(4,)` |
| `data_pipeline` | | `cases`: paths; `pixdim`, `patch_size` | every labelled slice in its two versions; of no use for a comparison |
| `augmentation` | | `image` and `label` `(1, x, y)` as cached, `patch_size`, `draws` | `twin_image`, `twin_label`: the last version that is not random |
| `export` | | | |
| `start_up` | | | |

A training step is noise, all losses, one backward pass and Adam (learning rate 1e-4); both codes are masked by channel.
Whoever prepares it seeds the generators of Python, NumPy and PyTorch with 0 at last. A step then draws as the reference:
`torch.randn` of the images' shape `(B, 1, x, y)`, and for the image code, then the shape code, a shuffle of the one kind,
`numpy.random.rand()` and `torch.rand(B, 128)`.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from ignite.utils import manual_seed

from cooperative_training.inferers import StackInferer
from tools.benchmark import Row, Setting
from tools.benchmark.exports import export, probabilities
from tools.benchmark.settings import autocast, by_engine, plain_and_fast, start_up, times
from tools.per_bundle.cooperative_training_acdc_mri import benchmark_inputs as given
from tools.per_bundle.cooperative_training_acdc_mri.benchmark_inputs import BUNDLE, PIXDIM, SPACING, Size

PATCH = (192, 192)
SCAN = (216, 256, 9)
DRAWS = 10  # a batch of train.yaml
KEYS = ("image", "label", "twin_image", "twin_label")

Outputs = dict[str, Any]


def rows(device: torch.device) -> list[Row]:
    """Returns the workloads; slices are smaller on a CPU, files and whole stacks are ACDC's everywhere."""
    cuda = device.type == "cuda"
    sizes = {"": (20, *PATCH)} if cuda else {"": (4, 96, 96), "_8": (8, 96, 96)}
    return [
        *(
            step(device, size, cooperative=kind, suffix=suffix)
            for suffix, size in sizes.items()
            for kind in (True, False)
        ),
        stack_inference(device, (*PATCH, 10) if cuda else (96, 96, 10)),
        whole_stack(device, SCAN, patch_size=PATCH),
        data_pipeline(SCAN, patch_size=PATCH),
        augmentation(SCAN, patch_size=PATCH),
        export(BUNDLE, device, shape=(10, 1, *PATCH), activation=probabilities),
        start_up(BUNDLE),
    ]


def step(device: torch.device, size: Size, *, cooperative: bool, suffix: str = "") -> Row:
    """Returns the row of a training step on a batch of `size` (B, x, y)."""
    inputs = functools.partial(given.batch, size)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network = given.copied(device).train()
        cooperation, optimizer = given.cooperation(network, cooperative=cooperative), given.optimizer(network)
        image, label = (inputs()[key].to(device) for key in ("image", "label"))
        scaler, one = (
            torch.amp.GradScaler(device.type, enabled=fast and device.type == "cuda"),
            torch.ones(1).to(device),
        )
        manual_seed(0)

        def train() -> Outputs:
            optimizer.zero_grad()
            with autocast(device, enabled=fast):
                losses = cooperation(image, label)
                total = torch.stack(list(losses.values())).sum()
            torch.autograd.backward(scaler.scale(total))
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            gradient = torch.nn.utils.get_total_norm(gradients) / scaler.scale(one)
            scaler.step(optimizer)
            scaler.update()
            return {name: value.detach() for name, value in losses.items()} | {"gradient": gradient}

        return train

    return Row(
        name=f"{'cooperative' if cooperative else 'standard'}_step{suffix}",
        unit=f"losses and Adam step on {times(size)} pixels",
        settings=plain_and_fast(prepare, device, atol=0.1, rtol=0.2),
        state_dict=given.reference_names,
        inputs=inputs,
        # Losses agree to 1e-5 unless rounding swaps two channels at the edge of a mask, gradients to 1e-3.
        rtol=0.03 if cooperative else 3e-3,
    )


def stack_inference(device: torch.device, size: Size) -> Row:
    """Returns the row of the network alone on a stack of `size` (x, y, z), slice by slice and at once."""

    def image() -> torch.Tensor:
        return torch.from_numpy(given.stack(size))[None, None].float() / 500

    def prepare(*, slices: int, fast: bool = False) -> Callable[[], Outputs]:
        network, inferer, stack = given.copied(device).eval(), StackInferer(slices), image().to(device)

        @torch.inference_mode()
        def forward() -> Outputs:
            with autocast(device, enabled=fast):
                return {"logits": inferer(stack, network)}

        return forward

    batched = functools.partial(prepare, slices=size[-1])
    fast = plain_and_fast(batched, device, atol=3, rtol=0.05)["fast"]  # untrained networks amplify rounding
    return Row(
        name="stack_inference",
        unit=f"logits of {times(size)} voxels; plain: slice by slice",
        settings={
            "plain": Setting(prepare=functools.partial(prepare, slices=1)),
            "batched": Setting(prepare=batched, atol=1e-3, rtol=1e-3),
            "fast": fast,
        },
        state_dict=given.reference_names,
        inputs=lambda: {"image": image()},
        atol=1e-3,
        rtol=1e-3,
    )


def whole_stack(device: torch.device, size: Size, *, patch_size: Size) -> Row:
    """Returns the row of `inference.yaml` from a volume of `size` (x, y, z) in memory to the label map on its grid."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(given.stack(size), patch_size=patch_size, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            found = evaluator.state.output[0]["pred"][0]
            return {"share": torch.stack([(found == value).float().mean() for value in range(4)])}

        return segment

    return Row(
        name="whole_stack",
        unit=f"label map of {times(size)} voxels",
        settings=by_engine(prepare, device, atol=0.01, rtol=0),
        state_dict=given.reference_names,
        inputs=lambda: {"image": given.stack(size), "spacing": SPACING, "pixdim": PIXDIM, "patch_size": patch_size},
        atol=0.02,
    )


def data_pipeline(size: Size, *, patch_size: Size) -> Row:
    """Returns the row of an epoch of slices from a patient's two volumes of `size` (x, y, z), read anew and cached."""

    def prepare(source: Callable[..., Any]) -> Callable[[], Outputs]:
        dataset = source(size, patch_size=patch_size)

        def epoch() -> Outputs:
            samples = [dataset[index] for index in range(len(dataset))]
            return {key: [sample[key] for sample in samples] for key in KEYS}

        return epoch

    return Row(
        name="data_pipeline",
        unit=f"epoch on two volumes of {times(size)} voxels; plain: read anew for every slice",
        settings={
            "plain": Setting(prepare=functools.partial(prepare, given.Anew)),
            "cached": Setting(prepare=functools.partial(prepare, given.cached), atol=0, rtol=0),
        },
        inputs=lambda: {"cases": given.cases(size), "pixdim": PIXDIM, "patch_size": patch_size},
        work=0,
    )


def augmentation(size: Size, *, patch_size: Size) -> Row:
    """Returns the row of the transforms of a slice of `train.yaml` on one of a volume of `size` (x, y, z)."""

    def item() -> dict[str, torch.Tensor]:
        dataset = given.cached(size, patch_size=patch_size)
        return dict(dataset.data[len(dataset) // 4])

    def prepare() -> Callable[[], Outputs]:
        draw, cached = given.training_transforms("preprocessing", patch_size=patch_size), item()

        def augment() -> Outputs:
            drawn = [draw(cached) for _ in range(DRAWS)][-1]
            return {key: drawn[key] for key in ("twin_image", "twin_label")}

        return augment

    return Row(
        name="augmentation",
        unit=f"{DRAWS} random slices of {times(patch_size)} pixels and their twins",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: {**item(), "patch_size": patch_size, "draws": DRAWS},
        work=0,
    )
