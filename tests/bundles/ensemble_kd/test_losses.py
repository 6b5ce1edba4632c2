"""Losses of members and student of ensemble_kd_kits_ct: by hand, and against the reference implementation."""

from __future__ import annotations

from functools import partial
from math import exp, inf, log, nan
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DeepSupervisionLoss

from ensemble_kd.losses import DistillationLoss, HardLoss
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")

Target = dict[str, torch.Tensor]

WEIGHTED: dict[str, Any] = {"hard_on": "probs", "class_weights": (1, 2, 5)}
HARD: dict[str, dict[str, Any]] = {
    "hard_ce.legacy": {"hard_on": "probs"},
    "hard_ce.fixed": {},
    "hard_ce_w125.legacy": WEIGHTED,
    "dice": {"kind": "dice"},
}
SOFT: dict[str, dict[str, Any]] = {
    "soft_mse": {"alpha": 0},
    "kd_a0.1.legacy": {"hard_on": "probs"},
    "kd_a0.1.fixed": {},
    "soft_ce.fixed": {"alpha": 0, "soft": "ce"},
}


def golden(shape: str) -> tuple[torch.Tensor, Target]:
    """Logits and targets of the reference."""
    logits, soft, label = (torch.from_numpy(GOLDEN[f"loss.{shape}.{name}"]) for name in ("logits", "soft", "labels"))
    return logits.requires_grad_(), {"label": label[:, None], "soft": soft}


@pytest.mark.parametrize("shape", ["2d", "3d"])
@pytest.mark.parametrize("name", [*HARD, *SOFT])
def test_values_and_gradients(name: str, shape: str) -> None:
    logits, target = golden(shape)
    is_hard = name in HARD
    value = (
        HardLoss(**HARD[name])(logits, target["label"]) if is_hard else DistillationLoss(**SOFT[name])(logits, target)
    )
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(float(GOLDEN[f"loss.{shape}.{name}"]), rel=0, abs=1e-10)
    np.testing.assert_allclose(gradient, GOLDEN[f"lossgrad.{shape}.{name}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", ["2d", "3d"])
@pytest.mark.parametrize("temperature", [2, 4])
def test_temperature(temperature: int, shape: str) -> None:
    """Nothing is left of the soft term where the soft labels are the reference's softmax at this temperature."""
    logits, target = golden(shape)
    target["soft"] = torch.from_numpy(GOLDEN[f"loss.{shape}.softmax_T{temperature}"])
    losses = [DistillationLoss(0, temperature=value)(logits, target).item() for value in (temperature, 1)]
    assert losses[0] == pytest.approx(0, abs=1e-20)
    assert losses[1] > 1e-3


def pixel(*scores: float) -> torch.Tensor:
    """Logits of one voxel."""
    return torch.tensor(scores, dtype=torch.float64).view(1, -1, 1, 1, 1)


def classes(*values: int) -> torch.Tensor:
    """Labels of samples of one voxel, `(B, 1, 1, 1, 1)`."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cross_entropy_by_hand(temperature: float) -> None:
    """T log 3 for class 1: p = (1/4, 3/4); its cross-entropy as logits is -3/4 + log(e^1/4 + e^3/4)."""
    logits = pixel(0, temperature * log(3))
    found = [HardLoss(hard_on=on, temperature=temperature)(logits, classes(1)).item() for on in ("logits", "probs")]
    assert found == pytest.approx([log(4 / 3), log(exp(0.25) + exp(0.75)) - 0.75], abs=1e-12)


def test_class_weights_by_hand() -> None:
    """One voxel of each class, p = (1/4, 3/4): (1 log 4 + 3 log 4/3) / 4, and log 4 where class 0 alone counts."""
    logits, label = torch.cat([pixel(0, log(3))] * 2), classes(0, 1)
    assert HardLoss(class_weights=[1, 3])(logits, label).item() == pytest.approx(
        (log(4) + 3 * log(4 / 3)) / 4, abs=1e-12
    )
    assert HardLoss(class_weights=[0.5, 0])(logits, label).item() == pytest.approx(log(4), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dice_by_hand(temperature: float) -> None:
    """Over the whole batch. Class 0: 2 (1/2) / (3/4 + 1); class 1: 2 (3/4) / (5/4 + 1)."""
    logits = torch.cat([pixel(0, 0), pixel(0, temperature * log(3))])
    expected = -(1 / 1.75 + 1.5 / 2.25)
    found = [HardLoss("dice", hard_on=on, temperature=temperature)(logits, classes(0, 1)) for on in ("logits", "probs")]
    assert [value.item() for value in found] == pytest.approx([expected] * 2, abs=1e-7)


def test_dice_is_bounded() -> None:
    logits, label = torch.cat([pixel(100, 0, 0), pixel(0, 100, 0), pixel(0, 0, 100)]), classes(0, 1, 2)
    assert HardLoss("dice")(logits, label).item() == pytest.approx(-3, abs=1e-6)
    assert HardLoss("dice")(logits, classes(1, 2, 0)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["ce", "dice"])
def test_deep_supervision_adds_up(kind: str) -> None:
    """All outputs count alike, as with MONAI's `same` weights."""
    torch.manual_seed(0)
    outputs, label = [3 * torch.randn(2, 3, 4, 4, 4) for _ in range(3)], torch.randint(3, (2, 1, 4, 4, 4))
    loss = HardLoss(kind)
    expected = sum(loss(output, label).item() for output in outputs)
    assert loss(outputs, label).item() == pytest.approx(expected, rel=1e-6)
    assert loss(tuple(outputs), label).item() == pytest.approx(expected, rel=1e-6)
    assert DeepSupervisionLoss(loss, weight_mode="same")(outputs, label).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.1), (2.0, 0.7)])
def test_distillation_by_hand(temperature: float, alpha: float) -> None:
    """With p = (1/4, 3/4), q = (1/2, 1/2), label 1: 2/16 or (log 4 + log 4/3) / 2, and alpha log 4/3; no factor T^2."""
    logits = pixel(0, temperature * log(3))
    target = {"label": classes(1), "soft": torch.full((1, 2, 1, 1, 1), 0.5)}
    arguments = partial(DistillationLoss, alpha, temperature=temperature)
    hard = alpha * log(4 / 3)
    assert arguments()(logits, target).item() == pytest.approx(1 / 8 + hard, abs=1e-12)
    assert arguments("ce")(logits, target).item() == pytest.approx((log(4) + log(4 / 3)) / 2 + hard, abs=1e-12)
    double = log(exp(0.25) + exp(0.75)) - 0.75
    assert arguments(hard_on="probs")(logits, target).item() == pytest.approx(1 / 8 + alpha * double, abs=1e-12)


def test_distillation_weights_the_hard_term_only() -> None:
    logits, target = golden("2d")
    weights = (1.0, 2.0, 5.0)
    hard = HardLoss(class_weights=weights)(logits, target["label"]).item()
    expected = float(GOLDEN["loss.2d.soft_mse"]) + 0.3 * hard
    found = DistillationLoss(0.3, class_weights=weights)(logits, target).item()
    assert found == pytest.approx(expected, abs=1e-12)
    assert found != pytest.approx(DistillationLoss(0.3)(logits, target).item(), abs=1e-3)


def test_distillation_without_hard_term_needs_no_label() -> None:
    logits, target = golden("2d")
    found = DistillationLoss(0.0)(logits, {"soft": target["soft"]}).item()
    assert found == pytest.approx(float(GOLDEN["loss.2d.soft_mse"]), abs=1e-12)
    with pytest.raises(KeyError, match="label"):
        DistillationLoss(0.1)(logits, {"soft": target["soft"]})


def test_distillation_teaches_the_main_output_only() -> None:
    logits, target = golden("2d")
    auxiliary = torch.randn_like(logits, requires_grad=True)
    value = DistillationLoss()([logits, auxiliary], target)
    assert value.item() == pytest.approx(float(GOLDEN["loss.2d.kd_a0.1.fixed"]), abs=1e-10)
    value.backward()
    assert logits.grad is not None
    assert auxiliary.grad is None


def test_soft_labels_of_another_shape() -> None:
    """Without the check a single channel would be broadcast."""
    logits, target = golden("2d")
    with pytest.raises(ValueError, match=r"soft labels are \(2, 1, 7, 6\), the logits \(2, 3, 7, 6\)"):
        DistillationLoss()(logits, target | {"soft": target["soft"][:, :1]})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss", [HardLoss(**WEIGHTED), HardLoss("dice"), DistillationLoss(), DistillationLoss(soft="ce")]
)
def test_single_precision(loss: torch.nn.Module, half: torch.dtype) -> None:
    """Under autocast too: logits in half precision, soft labels as files have them, labels of bytes."""
    torch.manual_seed(0)
    logits = (8 * torch.randn(2, 3, 9, 9)).to(half).requires_grad_()
    soft, label = torch.rand(2, 3, 9, 9).softmax(1).half(), torch.randint(3, (2, 1, 9, 9))
    target = label if isinstance(loss, HardLoss) else {"label": label, "soft": soft}
    coarse = label.to(torch.uint8) if isinstance(loss, HardLoss) else {"label": label.to(torch.uint8), "soft": soft}
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, coarse)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(logits.detach().float(), target))
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()


def test_weights_follow_the_network() -> None:
    """They are in no state dict, where checkpoints of other weights would collide."""
    loss = DistillationLoss(class_weights=[1, 2, 3])
    assert not loss.state_dict()
    assert loss.to("meta").hard.weight is not None
    assert loss.hard.weight is not None
    assert loss.hard.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "focal"}, "hard_loss: must be one of ce, dice, dice_ce, got 'focal'"),
        ({"hard_on": "softmax"}, "hard_on: must be one of logits, probs, got 'softmax'"),
        ({"temperature": 0}, "temperature: must be positive and finite, got 0"),
        ({"temperature": -2.0}, "temperature: must be positive and finite, got -2.0"),
        ({"temperature": inf}, "temperature: must be positive and finite, got inf"),
        ({"temperature": nan}, "temperature: must be positive and finite, got nan"),
        (
            {"class_weights": [1, -1]},
            "class_weights: must be finite, none negative and one of them positive, got [1, -1]",
        ),
        (
            {"class_weights": [0, 0]},
            "class_weights: must be finite, none negative and one of them positive, got [0, 0]",
        ),
        (
            {"class_weights": [1, inf]},
            "class_weights: must be finite, none negative and one of them positive, got [1, inf]",
        ),
        (
            {"class_weights": [1, nan]},
            "class_weights: must be finite, none negative and one of them positive, got [1, nan]",
        ),
        ({"class_weights": []}, "class_weights: must be finite, none negative and one of them positive, got []"),
        (
            {"kind": "dice", "class_weights": [1, 2]},
            "class_weights: belong to the cross-entropy, got [1, 2] for the Dice loss",
        ),
    ],
)
def test_bad_arguments_of_the_hard_loss(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        HardLoss(**arguments)
    assert str(error.value).endswith(f"\n  {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "alpha: must be finite and not negative, got -0.1"),
        ({"alpha": inf}, "alpha: must be finite and not negative, got inf"),
        ({"alpha": nan}, "alpha: must be finite and not negative, got nan"),
        ({"soft": "kl"}, "soft: must be one of mse, ce, got 'kl'"),
        ({"temperature": 0.0}, "temperature: must be positive and finite, got 0.0"),
        ({"hard_on": "p"}, "hard_on: must be one of logits, probs, got 'p'"),
    ],
)
def test_bad_arguments_of_distillation(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        DistillationLoss(**arguments)
    assert str(error.value).endswith(f"\n  {message}")
