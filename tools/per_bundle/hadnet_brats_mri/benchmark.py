"""Workloads of the brain-tumour bundle for `tools benchmark`, and what a foreign implementation gets to do the same.

A function per row, of the row's name, takes the sizes. State dicts have the reference's key names, each with its network
in front: `student.conv_d1...`, `teacher.conv_d1...`, `discriminator.disc_1...`; their kernels are for arrays along S, A, L,
and so are the arrays of all rows but `whole_scan`. Classes are 0 background, 1 NCR, 2 ED, 3 ET. Nothing is dropped but in
`uncertainty`, so that results can be compared.

| row | state dict | inputs | outputs |
|---|---|---|---|
| `adversarial_step`, `..._32` | all networks | `image` `(1, 4, s, a, l)` float32, of which the student sees channels 0, 2, 3; `label` `(1, 1, s, a, l)` uint8 | `loss`, `segmentation`, `adversarial`, `discriminator`, `real_accuracy`, `fake_accuracy`; `student_gradient` and `discriminator_gradient`, the norm of all of it |
| `pretraining_step` | student | `image` `(1, 3, s, a, l)`, `label` | `loss`, `student_gradient` |
| `whole_scan` | student | `image` int16 `(3, x, y, z)` in LPS order, voxels of 1 mm; `size` along S, A, L | `share` `(4, 4, 4, 4)`: of each class 0, 1, 2, 4 in each of 4x4x4 parts of the label map `(x, y, z)` |
| `uncertainty` | student | `image` `(1, 3, s, a, l)`, `samples` | `ET`, `TC`, `WT` `(1, s, a, l)` from 0 to 100 |
| `data_pipeline` | | `cases`: paths `image` (of FLAIR) and `label`; `pixdim` and `size` along S, A, L | `image` and `label` of the last case, as a batch of the above |
| `augmentation` | | `image` `(4, s, a, l)`, `brain` and `label` `(1, s, a, l)` uint8, `draws` | the last draw, of no use for a comparison |
| `export` | | | |
| `start_up` | | | |

An adversarial step is one of the student and one of the discriminator, which always learns, by Adam (learning rate 2e-4);
class weights are those of the first epoch. A pre-training step is by AdamW. Passes with dropout (0.2) draw as the
reference: the skip first, then the deeper features; whoever prepares them seeds PyTorch with 0 at last.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.utils import manual_seed
from torch.nn.functional import adaptive_avg_pool3d

from hadnet.uncertainty import MonteCarloDropout, region_uncertainty
from tools.benchmark import Row, Setting
from tools.benchmark.exports import export, probabilities
from tools.benchmark.settings import by_engine, start_up, times
from tools.per_bundle.hadnet_brats_mri import benchmark_inputs as given
from tools.per_bundle.hadnet_brats_mri.benchmark_inputs import BUNDLE, STUDENT, Size

SIZE = (160, 192, 160)
SCAN = (240, 240, 155)
SAMPLES = 4
DRAWS = 4
LOSSES = ("loss", "segmentation", "adversarial", "discriminator", "real_accuracy", "fake_accuracy")

Outputs = dict[str, Any]


def rows(device: torch.device) -> list[Row]:
    """Returns the workloads; on a CPU networks or what they see is smaller, files are the challenge's everywhere."""
    cuda = device.type == "cuda"
    steps = {"": (32, SIZE)} if cuda else {"": (8, (64, 64, 64)), "_32": (32, (48, 48, 48))}
    filters, size = steps[""]
    return [
        *(adversarial_step(device, size, filters=k, suffix=suffix) for suffix, (k, size) in steps.items()),
        pretraining_step(device, size, filters=filters),
        whole_scan(device, SCAN, size=SIZE, filters=filters),
        uncertainty(device, size, filters=filters),
        data_pipeline(SCAN, spacing=(1, 1, 1), size=SIZE),
        augmentation(device, SIZE),
        export(BUNDLE, device, shape=(1, 3, *SIZE), activation=probabilities),
        start_up(BUNDLE),
    ]


def adversarial_step(device: torch.device, size: Size, *, filters: int, suffix: str = "") -> Row:
    """Returns the row of a step of distillation on a scan of `size`."""
    step = functools.partial(_step, device, size, filters=filters, outputs=LOSSES)
    return Row(
        name=f"adversarial_step{suffix}",
        unit=f"steps of student and discriminator, {filters} filters, on {times(size)} voxels",
        settings=by_engine(step, device, atol=0.1, rtol=0.2),
        state_dict=functools.partial(given.reference_names, *given.MADE, filters=filters),
        inputs=functools.partial(given.batch, size),
        rtol=1e-3,
    )


def pretraining_step(device: torch.device, size: Size, *, filters: int) -> Row:
    """Returns the row of a step of the student alone on a scan of `size`."""
    step = functools.partial(_step, device, size, filters=filters, outputs=["loss"], overlays=["pretrain"])
    return Row(
        name="pretraining_step",
        unit=f"step of the student, {filters} filters, on {times(size)} voxels",
        settings=by_engine(step, device, atol=0.01, rtol=0.2),
        state_dict=functools.partial(given.reference_names, "student", filters=filters),
        inputs=lambda: {
            key: value[:, STUDENT] if key == "image" else value for key, value in given.batch(size).items()
        },
        rtol=1e-3,
    )


def _step(
    device: torch.device,
    size: Size,
    *,
    filters: int,
    outputs: Sequence[str],
    fast: bool,
    overlays: Sequence[str] = (),
) -> Callable[[], Outputs]:
    """Prepares a step of a trainer of the bundle."""
    trainer, networks = given.trainer(size, filters=filters, device=device, amp=fast, overlays=overlays)
    learning = {role: made for role, made in networks.items() if role != "teacher"}

    def train() -> Outputs:
        trainer.run()
        found = {name: trainer.state.output[name].detach() for name in outputs}
        for role, made in learning.items():
            gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
            found[f"{role}_gradient"] = torch.nn.utils.get_total_norm(gradients)
        return found

    return train


def whole_scan(device: torch.device, scan: Size, *, size: Size, filters: int) -> Row:
    """Returns the row of `inference.yaml` from a volume of `scan` (x, y, z) in memory to the label map on its grid."""
    image = functools.partial(given.student_scan, scan)

    def prepare(*, fast: bool) -> Callable[[], Outputs]:
        evaluator = given.evaluator(image(), size=size, filters=filters, device=device, amp=fast)

        def segment() -> Outputs:
            evaluator.run()
            found = evaluator.state.output[0]["pred"].as_tensor()
            return {"share": torch.cat([adaptive_avg_pool3d((found == value).float(), 4) for value in (0, 1, 2, 4)])}

        return segment

    return Row(
        name="whole_scan",
        unit=f"label map of {times(scan)} voxels, {filters} filters",
        settings=by_engine(prepare, device, atol=0.05, rtol=0),
        state_dict=functools.partial(given.reference_names, "student", filters=filters),
        inputs=lambda: {"image": image(), "size": size},
        atol=5e-3,
    )


def uncertainty(device: torch.device, size: Size, *, filters: int) -> Row:
    """Returns the row of passes with dropout on a scan of `size`, and the maps of uncertainty that they give."""

    def image() -> torch.Tensor:
        return given.batch(size)["image"][:, STUDENT]

    def prepare() -> Callable[[], Outputs]:
        network, inferer = given.copied(device, filters=filters, dropout=0.2).eval(), MonteCarloDropout(SAMPLES)
        seen = image().to(device)
        manual_seed(0)
        return lambda: region_uncertainty(inferer(seen, network)[0].softmax(0))

    return Row(
        name="uncertainty",
        unit=f"maps of {times(size)} voxels from {SAMPLES} passes, {filters} filters",
        settings={"plain": Setting(prepare=prepare)},
        state_dict=functools.partial(given.reference_names, "student", filters=filters),
        inputs=lambda: {"image": image(), "samples": SAMPLES},
        atol=0.1,
    )


def data_pipeline(scan: Size, *, spacing: Sequence[float], size: Size, pixdim: Sequence[float] = (1, 1, 1)) -> Row:
    """Returns the row of an epoch of distillation's batches from files of `scan` (x, y, z), read anew and cached."""

    def prepare(*, cached: bool) -> Callable[[], Outputs]:
        loader = given.loader(scan, spacing=spacing, pixdim=pixdim, size=size, cached=cached)

        def epoch() -> Outputs:
            for sample in loader:
                last = sample
            return {key: last[key] for key in ("image", "label")}

        return epoch

    return Row(
        name="data_pipeline",
        unit=f"epoch on two scans of {times(scan)} voxels; plain: read anew",
        settings={
            "plain": Setting(prepare=functools.partial(prepare, cached=False)),
            "cached": Setting(prepare=functools.partial(prepare, cached=True), atol=0, rtol=0),
        },
        inputs=lambda: {"cases": given.cases(scan, spacing=spacing), "pixdim": pixdim, "size": size},
        atol=1e-4,
        work=0,
    )


def augmentation(device: torch.device, size: Size) -> Row:
    """Returns the row of the random transforms of pre-training on a cached scan of `size`."""

    def item() -> dict[str, torch.Tensor]:
        brain = torch.from_numpy(given.brain(size) > 0)[None].to(torch.uint8)
        return {**{key: value[0] for key, value in given.batch(size).items()}, "brain": brain}

    def prepare() -> Callable[[], Outputs]:
        draw, cached = given.random_transforms(size, device=device), item()

        def augment() -> Outputs:
            drawn = [draw(cached) for _ in range(DRAWS)][-1]
            return {key: drawn[key] for key in ("image", "label")}

        return augment

    return Row(
        name="augmentation",
        unit=f"{DRAWS} random versions of a scan of {times(size)} voxels",
        settings={"plain": Setting(prepare=prepare)},
        inputs=lambda: {**item(), "draws": DRAWS},
        work=0,
    )
