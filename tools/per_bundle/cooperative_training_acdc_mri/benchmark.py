"""Workloads of the cardiac bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per case, of the case's name, takes the sizes. State dicts have the reference's key names, each with its network
in front (`image_encoder.general_encoder...`), **axis order and classes**: kernels are for arrays `(y, x)`, the classes are
1 LV, 2 MYO, 3 RV. All arrays, among inputs and outputs alike, have MONAI's order `(x, y)` and ACDC's classes 1 RV, 2 MYO,
3 LV: a baseline turns its inputs in its preparation, and what it returns back.

| case | state dict | inputs | outputs |
|---|---|---|---|
| `cooperative_step` | network | `image` and `label` `(B, 1, x, y)` float32 | every loss with its weight, as named by `CooperativeTraining`; `gradient` `(1,)`, the norm of all of it |
| `whole_stack` | network | `image` int16 `(x, y, z)`, `spacing` and `pixdim` in mm, `patch_size` | `share` of the voxels of every class `(4,)` |
| `preparation` | | `image`, `label`: paths; `pixdim` | `image` and `label` `(1, x, y, z)` on that grid, intensities from 0 to 1 |
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

from tools.benchmark import BenchmarkCase
from tools.benchmark.exports import export, probabilities
from tools.benchmark.variants import autocast, by_engine, eager_and_fast, preparation, start_up, times
from tools.per_bundle.cooperative_training_acdc_mri import benchmark_inputs as given
from tools.per_bundle.cooperative_training_acdc_mri.benchmark_inputs import BUNDLE, PIXDIM, SPACING, Size

PATCH = (192, 192)
SCAN = (216, 256, 9)

Outputs = dict[str, Any]


def benchmark_cases(device: torch.device) -> list[BenchmarkCase]:
    """Returns the workloads; slices are smaller on a CPU, files and whole stacks are ACDC's everywhere."""
    cuda = device.type == "cuda"
    return [
        cooperative_step(device, (20, *PATCH) if cuda else (4, 96, 96)),
        whole_stack(device, SCAN, patch_size=PATCH),
        preparation(
            SCAN, chain=given.preparing, files=functools.partial(given.labelled, SCAN), inputs={"pixdim": PIXDIM}
        ),
        export(BUNDLE, device, shape=(10, 1, *PATCH), activation=probabilities),
        start_up(BUNDLE),
    ]


def cooperative_step(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of a training step on a batch of `size` (B, x, y)."""
    inputs = functools.partial(given.batch, size)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network = given.copied(device).train()
        cooperation, optimizer = given.cooperation(network), given.optimizer(network)
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

    return BenchmarkCase(
        name="cooperative_step",
        unit=f"losses and Adam step on {times(size)} pixels",
        variants=eager_and_fast(prepare, device, atol=0.1, rtol=0.2),
        state_dict=given.reference_names,
        inputs=inputs,
        # Losses agree to 1e-5 unless rounding swaps two channels at the edge of a mask, gradients to 1e-3.
        rtol=0.03,
    )


def whole_stack(device: torch.device, size: Size, *, patch_size: Size) -> BenchmarkCase:
    """Returns the case of `inference.yaml` from a volume of `size` (x, y, z) in memory to the label map on its grid."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(given.stack(size), patch_size=patch_size, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            found = evaluator.state.output[0]["pred"][0]
            return {"share": torch.stack([(found == value).float().mean() for value in range(4)])}

        return segment

    return BenchmarkCase(
        name="whole_stack",
        unit=f"label map of {times(size)} voxels",
        variants=by_engine(prepare, device, atol=0.01, rtol=0),
        state_dict=given.reference_names,
        inputs=lambda: {"image": given.stack(size), "spacing": SPACING, "pixdim": PIXDIM, "patch_size": patch_size},
        atol=0.02,
    )
