"""Workloads of the distillation bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per case, of the case's name, takes the sizes. State dicts have the reference's key names, its unused decoder
included; arrays are along (x, y, z) as in files. Regions are WT, TC, ET; sequences T1, T1ce, T2, FLAIR.

| case | state dict | inputs | outputs |
|---|---|---|---|
| `training_step` | student | `image` `(1, 4, x, y, z)` normalised; `label` `(1, 3, x, y, z)` from 0 to 1, both float32; `learning_rate` | `loss`; `gradient`, the norm of all of it; `parameters` `(86,)`: mean of each tensor after the step, sorted by their names in the reference |
| `whole_brain` | student | `image` `(1, 4, x, y, z)` | `probabilities` `(1, 3, x, y, z)`, mean of four mirror images |
| `preparation` | | paths `image` (of T1) and `label` | `image` `(4, x, y, z)` and `label` `(3, x, y, z)` of the brain, normalised, in the least size |
| `sampler` | | `image` `(4, x, y, z)`, `label` `(3, x, y, z)`, `centres` `(2, 3)`: least and greatest; `patch`, `draws` | `image` and `label` of the last patch |
| `export` | | | |
| `start_up` | | | |

A training step is by Adam with `amsgrad` and a weight decay of 1e-6. Random numbers of the sampler are drawn by
MONAI's transforms, seeded: a foreign implementation has to be given the same ones to be compared.
"""  # noqa: E501

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from lachinov_distillation.sampling import tumour_centres
from tools.benchmark import BenchmarkCase, Variant
from tools.benchmark.exports import export
from tools.benchmark.variants import autocast, by_engine, eager_and_fast, preparation, start_up, times
from tools.per_bundle.lachinov_distillation_brats_mri import benchmark_inputs as given
from tools.per_bundle.lachinov_distillation_brats_mri.benchmark_inputs import BUNDLE, Size

FILES = (240, 240, 155)
SCAN = (160, 192, 160)
BRAIN = (144, 176, 144)
PATCH = (144, 144, 128)
DRAWS = 4
RATE = 0.01  # so that a step can be told from rounding

Outputs = dict[str, Any]


def benchmark_cases(device: torch.device) -> list[BenchmarkCase]:
    """Returns the workloads; on a CPU networks see less, files are the challenge's everywhere."""
    cuda = device.type == "cuda"
    return [
        training_step(device, PATCH if cuda else (64, 64, 64)),
        whole_brain(device, BRAIN),
        preparation(FILES, chain=given.preparing, files=functools.partial(given.patient, FILES), inputs={}),
        sampler(SCAN, patch=PATCH),
        export(BUNDLE, device, shape=(1, 4, *BRAIN), activation=torch.sigmoid),
        start_up(BUNDLE),
    ]


def training_step(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of a step of the student on one patch of `size`."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trainer, network = given.trainer(size, device=device, amp=fast, learning_rate=RATE)
        names = given.key_map().names
        parameters = [value for _, value in sorted(network.named_parameters(), key=lambda pair: names[pair[0]])]

        def train() -> Outputs:
            trainer.run()
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            return {
                "loss": trainer.state.output["loss"].detach(),
                "gradient": torch.nn.utils.get_total_norm(gradients),
                "parameters": torch.stack([parameter.detach().double().mean() for parameter in parameters]),
            }

        return train

    return BenchmarkCase(
        name="training_step",
        unit=f"step of the student on {times(size)} voxels",
        variants=by_engine(prepare, device, atol=2 * RATE, rtol=0.2),
        state_dict=given.reference_names,
        inputs=lambda: {**given.batch(size), "learning_rate": RATE},
        # The first step goes by the signs of gradients, and one in 16 may be next to 0.
        atol=0.15 * RATE,
        rtol=1e-3,
    )


def whole_brain(device: torch.device, size: Size) -> BenchmarkCase:
    """Returns the case of the student's probabilities for a brain of `size` and its mirror images."""

    def image() -> torch.Tensor:
        return given.batch(size)["image"]

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        network, predictor = copy.deepcopy(given.network()).to(device).eval(), given.predictor()

        def segment() -> Outputs:
            with torch.no_grad(), autocast(device, enabled=fast):
                return {"probabilities": predictor(image().to(device), network).cpu()}

        return segment

    return BenchmarkCase(
        name="whole_brain",
        unit=f"probabilities of {times(size)} voxels from four mirror images",
        variants=eager_and_fast(prepare, device, atol=0.2, rtol=0),  # on a CPU by bfloat16.yaml
        state_dict=given.reference_names,
        inputs=lambda: {"image": image()},
        atol=1e-4,
    )


def sampler(size: Size, *, patch: Size) -> BenchmarkCase:
    """Returns the case of the random transforms on a cached scan of `size`."""

    def item() -> Outputs:
        sample = {key: value[0] for key, value in given.batch(size).items()}
        return {**sample, "centres": tumour_centres(sample["label"][:1], patch)}

    def prepare() -> Callable[[], Outputs]:
        draw, cached = given.random_transforms(patch), item()

        def augment() -> Outputs:
            return [draw(cached) for _ in range(DRAWS)][-1]

        return augment

    return BenchmarkCase(
        name="sampler",
        unit=f"{DRAWS} patches of 7x{times(patch)} values",
        variants={"eager": Variant(prepare=prepare)},
        inputs=lambda: {**item(), "patch": patch, "draws": DRAWS},
    )
