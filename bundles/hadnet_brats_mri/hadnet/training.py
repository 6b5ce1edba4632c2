"""Hierarchical adversarial distillation: a step of the student and, while it is weak, one of its discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import Trainer
from monai.utils import CommonKeys
from torch import nn

from .losses import least_squares
from .networks import Pair, SegmentationNetwork

__all__ = ["DistillationTrainer", "frozen"]

Judged = tuple[torch.Tensor, torch.Tensor, list[Pair]]


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it, what the network computes has gradients for its inputs, but none for its parameters."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


class DistillationTrainer(Trainer):
    """Trains a student against a discriminator that compares it with a frozen teacher (paper, equations 1 and 2).

    A step minimises, with T and S the segmentations and features of teacher and student,

    - for the student `CE(S, label) + adversarial_weight * (D(S) - 1)^2`, the discriminator D being constant, and then
    - for the discriminator `(D(T) - 1)^2 + D(S)^2`, before which it leaves its weights and its optimizer alone when it
      tells more than `threshold` of the patches apart already.

    Batches are `image (B, sequences, H, W, D)`, as the teacher sees them, and `label (B, 1, H, W, D)`, class indices.
    The output of an iteration is the student's `loss` with its parts `segmentation` and `adversarial`, and
    `discriminator`, `real_accuracy`, `fake_accuracy` and `discriminator_step` (0 or 1): scalars on the device.

    Args:
        device: where everything is.
        max_epochs: number of epochs.
        train_data_loader: batches.
        network: student; returns logits and features, as `WithFeatures`.
        teacher: its parameters and their gradients are left alone.
        discriminator: takes logits, what the student sees, and features.
        optimizer: of the student.
        discriminator_optimizer: of the discriminator.
        loss_function: of logits and label.
        student_channels: which channels of `image` the student sees.
        adversarial_weight: 0 is supervised training of the student.
        threshold: accuracy above which the discriminator waits.
        teacher_dropout: whether the teacher's dropout is active, as it is in the reference.
        key_train_metric: as of MONAI's trainers.
        train_handlers: likewise.
        amp: mixed precision on a GPU.
        **options: further ones of `monai.engines.Workflow`.
    """

    def __init__(
        self,
        device: torch.device,
        max_epochs: int,
        *,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        teacher: SegmentationNetwork,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        student_channels: Sequence[int],
        adversarial_weight: float = 0.2,
        threshold: float = 0.8,
        teacher_dropout: bool = True,
        key_train_metric: Mapping[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            key_metric=key_train_metric,
            handlers=train_handlers,
            amp=amp,
            decollate=False,
            **options,
        )
        self.network = network
        self.teacher = teacher.requires_grad_(False)
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.loss_function = loss_function
        self.student_channels = list(student_channels)
        self.adversarial_weight = adversarial_weight
        self.threshold = threshold
        self.teacher_dropout = teacher_dropout

    def _iteration(self, engine: DistillationTrainer, batchdata: Any) -> dict[str, torch.Tensor]:
        """Does one step on a batch."""
        image, label = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        scan = image[:, self.student_channels]
        self.network.train()
        self.teacher.train(self.teacher_dropout)
        with torch.no_grad(), self._autocast():
            logits, pairs = self.teacher.features(image)
            real = logits, scan, pairs
        output, fake = self._student_step(scan, label)
        output |= self._discriminator_step(real, fake)
        if self.scaler is not None:
            self.scaler.update()
        return output

    def _student_step(self, scan: torch.Tensor, label: torch.Tensor) -> tuple[dict[str, torch.Tensor], Judged]:
        """Trains the student; returns its losses, and what the discriminator saw of it, detached."""
        judge = getattr(self.discriminator, "module", self.discriminator)  # constant: nothing to synchronise
        self.optimizer.zero_grad()
        with self._autocast():
            logits, pairs = self.network(scan)
            with frozen(judge):
                verdict = judge(logits, scan, pairs=pairs)
            segmentation = self.loss_function(logits, label)
            adversarial = least_squares(verdict, 1)
            loss = segmentation + self.adversarial_weight * adversarial
        self._descend(loss, self.optimizer)
        losses = {CommonKeys.LOSS: loss, "segmentation": segmentation, "adversarial": adversarial}
        fake = logits.detach(), scan, [(shallow.detach(), deep.detach()) for shallow, deep in pairs]
        return {name: value.detach() for name, value in losses.items()}, fake

    def _discriminator_step(self, real: Judged, fake: Judged) -> dict[str, torch.Tensor]:
        """Trains the discriminator unless it is good enough."""
        self.discriminator_optimizer.zero_grad()
        with self._autocast():
            verdicts = self._verdicts(real, fake)
            of_real, of_fake = verdicts.chunk(2)
            loss = least_squares(of_real, 1) + least_squares(of_fake, 0)
        accuracies = torch.stack([(of_real >= 0.5).float().mean(), (of_fake <= 0.5).float().mean()])
        # Every process must decide alike.
        accuracies = idist.all_reduce(accuracies) / idist.get_world_size()
        learns = accuracies.mean() <= self.threshold
        if learns:
            self._descend(loss, self.discriminator_optimizer)
        return {
            "discriminator": loss.detach(),
            "real_accuracy": accuracies[0],
            "fake_accuracy": accuracies[1],
            "discriminator_step": learns.float(),
        }

    def _verdicts(self, real: Judged, fake: Judged) -> torch.Tensor:
        """Judges both as one batch, the real first."""
        pairs = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(real[2], fake[2], strict=True)]
        verdicts: torch.Tensor = self.discriminator(
            torch.cat([real[0], fake[0]]), torch.cat([real[1], fake[1]]), pairs=pairs
        )
        return verdicts

    def _descend(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            torch.autograd.backward(loss)
            optimizer.step()
        else:
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(optimizer)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", enabled=self.amp, **self.amp_kwargs)
