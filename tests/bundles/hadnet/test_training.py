"""What distillation leaves alone, what it is without its discriminator, and what its steps return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from hadnet.networks import Discriminator, SegmentationNetwork
from hadnet.training import DistillationTrainer, frozen
from tests.bundles.hadnet.files import SEQUENCES, scan, write, write_case
from tests.bundles.hadnet.reference import STUDENT, config

Batch = dict[str, torch.Tensor]
State = dict[str, torch.Tensor]
OUTPUTS = {
    "loss",
    "segmentation",
    "adversarial",
    "discriminator",
    "real_accuracy",
    "fake_accuracy",
    "discriminator_step",
}


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.rand(1, 4, 32, 32, 32, generator=generator),
            "label": torch.randint(4, (1, 1, 32, 32, 32), generator=generator),
        }
        for _ in range(count)
    ]


def network(in_channels: int = 3) -> SegmentationNetwork:
    torch.manual_seed(in_channels)
    return SegmentationNetwork(in_channels, filters=4)


def distillation(data: Sequence[Batch], *stems: str, **overrides: Any) -> DistillationTrainer:
    """Trainer of train.yaml; each has the same weights at its start."""
    fixed: dict[str, Any] = {"train__handlers": [], "train__key_metric": None, "max_epochs": 1, "filters": 4}
    networks = {"network": network(), "teacher": network(4)}
    parser = config("train", *stems, train__dataloader=data, **networks, **fixed, **overrides)
    torch.manual_seed(2)
    trainer: DistillationTrainer = parser.get_parsed_content("train::trainer")
    return trainer


def snapshot(module: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_without_adversarial_weight_it_is_supervised_training() -> None:
    """Bit by bit, the student's dropout included."""
    data = batches(3)
    trainer = distillation(data, adversarial_weight=0.0, teacher_dropout=False)
    student = network()
    supervised = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": item["image"][:, STUDENT], "label": item["label"]} for item in data],
        network=student,
        optimizer=torch.optim.Adam(student.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True),
        loss_function=trainer.loss_function,
        decollate=False,
    )
    start = snapshot(student)
    for engine in (trainer, supervised):
        torch.manual_seed(3)
        engine.run()
    distilled = {f"network.{name}": tensor for name, tensor in student.state_dict().items()}
    assert equal(distilled, trainer.network.state_dict())
    assert not any(torch.equal(tensor, start[name]) for name, tensor in student.state_dict().items())


def test_adversarial_weight_matters() -> None:
    runs = [distillation(batches(1), adversarial_weight=weight) for weight in (0.0, 0.2)]
    for trainer in runs:
        trainer.run()
    assert not equal(*(trainer.network.state_dict() for trainer in runs))
    total = sum(runs[1].state.output[name] * factor for name, factor in (("segmentation", 1), ("adversarial", 0.2)))
    torch.testing.assert_close(runs[1].state.output["loss"], total)
    assert torch.equal(runs[0].state.output["loss"], runs[0].state.output["segmentation"])


def test_teacher_is_left_alone() -> None:
    trainer = distillation(batches(2))
    before = snapshot(trainer.teacher)
    trainer.run()
    assert equal(before, trainer.teacher.state_dict())
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    learned = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in learned} == {id(parameter) for parameter in trainer.network.parameters()}


@pytest.mark.parametrize("active", [True, False])
def test_teacher_dropout(active: bool) -> None:
    trainer = distillation(batches(1), teacher_dropout=active)
    trainer.teacher.train(not active)
    trainer.run()
    layers = [module for module in trainer.teacher.modules() if isinstance(module, nn.Dropout3d)]
    assert {layer.training for layer in layers} == {active}
    assert all(module.training for module in trainer.network.modules())


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in module.parameters()]


def test_each_network_learns_in_its_own_pass_only() -> None:
    """Gradients of both when either has made a step: student, discriminator, student."""
    trainer = distillation(batches(2), threshold=1.0)
    seen = list[tuple[list[torch.Tensor | None], ...]]()
    for optimizer in (trainer.optimizer, trainer.discriminator_optimizer):
        optimizer.register_step_post_hook(
            lambda *_: seen.append((gradients(trainer.network), gradients(trainer.discriminator)))
        )
    trainer.run()
    first, second, third, _ = seen
    assert all(gradient is not None for gradient in first[0] + second[1])
    assert first[1] == len(first[1]) * [None]
    torch.testing.assert_close(second[0], first[0], rtol=0, atol=0)
    torch.testing.assert_close(third[1], second[1], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


@pytest.mark.parametrize("closed", [True, False])
def test_gate_closes_above_its_threshold(closed: bool) -> None:
    data = batches(1)
    trial = distillation(data)
    trial.run()
    accuracy = np.float32((trial.state.output["real_accuracy"] + trial.state.output["fake_accuracy"]) / 2)
    threshold = np.nextafter(accuracy, np.float32(-1)) if closed else accuracy
    trainer = distillation(data, threshold=float(threshold))
    before = snapshot(trainer.discriminator)
    trainer.run()
    assert trainer.state.output["discriminator_step"] == (0 if closed else 1)
    assert equal(before, trainer.discriminator.state_dict()) == closed
    assert len(trainer.discriminator_optimizer.state) == (0 if closed else len(before))
    assert len(trainer.optimizer.state) == len(snapshot(trainer.network))


def test_gate_may_open_again() -> None:
    """Waiting steps change neither the discriminator nor the momentum of its optimizer."""
    trainer = distillation(batches(3), threshold=1.0)
    states = list[tuple[State, Any]]()

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep() -> None:
        steps = {int(entry["step"]) for entry in trainer.discriminator_optimizer.state.values()}
        states.append((snapshot(trainer.discriminator), steps))
        trainer.threshold = -1.0 if trainer.state.iteration == 1 else 1.0

    trainer.run()
    assert [steps for _, steps in states] == [{1}, {1}, {2}]
    assert equal(states[0][0], states[1][0])
    assert not equal(states[1][0], states[2][0])


def test_frozen_networks_thaw() -> None:
    """After an error too; what was frozen before stays so."""
    judge = Discriminator(7, filters=4)
    judge.head.requires_grad_(False)
    before = [parameter.requires_grad for parameter in judge.parameters()]
    with frozen(judge):
        assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert [parameter.requires_grad for parameter in judge.parameters()] == before
    with pytest.raises(RuntimeError, match="channels"), frozen(judge):
        judge(torch.ones(1, 4, 32, 32, 32), torch.ones(1, 4, 32, 32, 32), pairs=[])
    assert [parameter.requires_grad for parameter in judge.parameters()] == before == 8 * [True] + [False]


def test_frozen_network_has_gradients_for_its_input() -> None:
    layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        y = layer(x)
    torch.autograd.backward(y)
    assert torch.equal(x.grad, layer.weight.detach())  # type: ignore[arg-type]
    assert layer.weight.grad is None


def test_output_of_a_step() -> None:
    trainer = distillation(batches(1))
    trainer.run()
    output = trainer.state.output
    assert set(output) == OUTPUTS
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in output.values())


@pytest.mark.parametrize("withheld", ["t1ce", "t2"])
def test_student_does_not_see_what_is_withheld(withheld: str) -> None:
    """Its first loss does not change with it; the teacher, the discriminator's other half, notices."""
    outputs = []
    for factor in (1.0, 0.5):
        (item,) = batches(1)
        item["image"][:, SEQUENCES.index(withheld)] **= factor
        trainer = distillation([item], withheld=[withheld], teacher_dropout=False)
        trainer.run()
        outputs.append(trainer.state.output)
    same = {name for name in OUTPUTS if torch.equal(outputs[0][name], outputs[1][name])}
    assert {"loss", "segmentation", "adversarial", "fake_accuracy"} <= same
    assert "discriminator" not in same


@pytest.mark.parametrize(("stems", "changes"), [((), False), (("reference",), True)])
def test_withheld_file_does_not_change_the_students_channels(
    stems: tuple[str, ...], changes: bool, tmp_path: Path
) -> None:
    """Unless the brain is made of all sequences, as the reference has it."""
    folder = write_case(tmp_path / "X")
    other = scan(7)
    other[2:5, 2:12, 2:8] = 0
    parser = config("train", *stems, size=[16, 16, 16], augmentation=[])
    transform, channels = (
        parser.get_parsed_content(key) for key in ("train::preprocessing", "train::trainer::student_channels")
    )
    files = {"case": "X", "image": str(folder / "X_flair.nii.gz"), "label": str(folder / "X_seg.nii.gz")}
    before = transform(files)
    write(folder / "X_t1ce.nii.gz", other)
    after = transform(files)
    assert channels == STUDENT
    assert torch.equal(before["image"][channels], after["image"][channels]) != changes
    assert torch.equal(before["brain"], after["brain"]) != changes
    assert not torch.equal(before["image"], after["image"])


def test_adnet_ignores_features() -> None:
    judge = config("train", "adnet", filters=4).get_parsed_content("discriminator")
    logits, x = torch.rand(1, 4, 32, 32, 48), torch.rand(1, 3, 32, 32, 48)
    pairs = network().features(x)[1]
    verdict = judge(logits, x, pairs=pairs)
    assert verdict.shape == (1, 1, 1, 1, 2)
    assert torch.equal(verdict, judge(logits, x, pairs=[]))
    assert not torch.equal(verdict, judge(logits + 1, x, pairs=[]))
    assert [block[0].in_channels for block in judge.blocks] == [7, 16, 32, 64]
    assert [block[0].out_channels for block in judge.blocks] == [16, 32, 64, 128]


@pytest.mark.parametrize("stems", [(), ("adnet",)])
def test_features_learn_from_the_verdict(stems: tuple[str, ...]) -> None:
    """Apart from the logits, which are constant here; those of AD-Net do not."""
    trainer, x = distillation([], *stems), batches(1)[0]["image"][:, STUDENT]
    logits, pairs = trainer.network(x)
    with frozen(trainer.discriminator):
        verdict = trainer.discriminator(logits.detach(), x, pairs=pairs)
    assert verdict.requires_grad == (not stems)
