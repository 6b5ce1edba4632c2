"""Workloads of the brain-tumour bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per case, of the case's name, takes the sizes. State dicts have the reference's key names, each with its network
in front: `student.conv_d1...`, `teacher.conv_d1...`, `discriminator.disc_1...`; their kernels are for arrays along S, A, L,
and so are the arrays of all cases but `whole_scan`. Classes are 0 background, 1 NCR, 2 ED, 3 ET. There is no dropout, so that
results can be compared.

| case | state dict | inputs | outputs |
|---|---|---|---|
| `adversarial_step` | all networks | `image` `(1, 4, s, a, l)` float32, of which the student sees channels 0, 2, 3; `label` `(1, 1, s, a, l)` uint8 | `loss`, `segmentation`, `adversarial`, `discriminator`, `real_accuracy`, `fake_accuracy`; `student_gradient` and `discriminator_gradient`, the norm of all of it |
| `whole_scan` | student | `image` int16 `(3, x, y, z)` in LPS order, voxels of 1 mm; `size` along S, A, L | `share` `(4, 4, 4, 4)`: of each class 0, 1, 2, 4 in each of 4x4x4 parts of the label map `(x, y, z)` |
| `preparation` | | paths `image` (of FLAIR) and `label`; `pixdim` and `size` along S, A, L | `image` and `label` as a step has them |
| `export` | | | |
| `start_up` | | | |

An adversarial step is one of the student and one of the discriminator, which always learns, by Adam (learning rate 2e-4);
class weights are those of the first epoch.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool3d

from tools.benchmark import BenchmarkCase
from tools.benchmark.exports import export, probabilities
from tools.benchmark.variants import by_engine, preparation, start_up, times
from tools.per_bundle.hadnet_brats_mri import benchmark_inputs as given
from tools.per_bundle.hadnet_brats_mri.benchmark_inputs import BUNDLE, Size

SIZE = (160, 192, 160)
SCAN = (240, 240, 155)
LOSSES = ("loss", "segmentation", "adversarial", "discriminator", "real_accuracy", "fake_accuracy")

Outputs = dict[str, Any]


def benchmark_cases(device: torch.device) -> list[BenchmarkCase]:
    """Returns the workloads; on a CPU networks or what they see is smaller, files are the challenge's everywhere."""
    cuda = device.type == "cuda"
    filters, size = (32, SIZE) if cuda else (8, (64, 64, 64))
    return [
        adversarial_step(device, size, filters=filters),
        whole_scan(device, SCAN, size=SIZE, filters=filters),
        preparation(
            SCAN,
            chain=functools.partial(given.preparing, size=SIZE),
            files=functools.partial(given.case, SCAN, spacing=(1, 1, 1)),
            inputs={"pixdim": (1, 1, 1), "size": SIZE},
        ),
        export(BUNDLE, device, shape=(1, 3, *SIZE), activation=probabilities),
        start_up(BUNDLE),
    ]


def adversarial_step(device: torch.device, size: Size, *, filters: int) -> BenchmarkCase:
    """Returns the case of a step of distillation on a scan of `size`."""

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        trainer, networks = given.trainer(size, filters=filters, device=device, amp=fast)

        def train() -> Outputs:
            trainer.run()
            found = {name: trainer.state.output[name].detach() for name in LOSSES}
            for role in ("student", "discriminator"):
                gradients = [value.grad for value in networks[role].parameters() if value.grad is not None]
                found[f"{role}_gradient"] = torch.nn.utils.get_total_norm(gradients)
            return found

        return train

    return BenchmarkCase(
        name="adversarial_step",
        unit=f"steps of student and discriminator, {filters} filters, on {times(size)} voxels",
        variants=by_engine(prepare, device, atol=0.1, rtol=0.2),
        state_dict=functools.partial(given.reference_names, *given.MADE, filters=filters),
        inputs=functools.partial(given.batch, size),
        rtol=1e-3,
    )


def whole_scan(device: torch.device, scan: Size, *, size: Size, filters: int) -> BenchmarkCase:
    """Returns the case of `inference.yaml` from a volume of `scan` (x, y, z) in memory to the label map on its grid."""
    image = functools.partial(given.student_scan, scan)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(image(), size=size, filters=filters, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            found = evaluator.state.output[0]["pred"].as_tensor()
            return {"share": torch.cat([adaptive_avg_pool3d((found == value).float(), 4) for value in (0, 1, 2, 4)])}

        return segment

    return BenchmarkCase(
        name="whole_scan",
        unit=f"label map of {times(scan)} voxels, {filters} filters",
        variants=by_engine(prepare, device, atol=0.05, rtol=0),
        state_dict=functools.partial(given.reference_names, "student", filters=filters),
        inputs=lambda: {"image": image(), "size": size},
        atol=5e-3,
    )
