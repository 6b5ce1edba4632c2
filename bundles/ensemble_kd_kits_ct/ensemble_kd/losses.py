"""Losses of the members of an ensemble, and of the network that learns from their averaged probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional

from .shared.validation import InputError

__all__ = ["DistillationLoss", "HardLoss"]

Logits = torch.Tensor | Sequence[torch.Tensor]


class HardLoss(nn.Module):
    """Loss against reference labels, of logits z with p = softmax(z / T), in single precision at least.

    `ce` is the cross-entropy. On `logits` it is mean(-log p_y). The reference implementation hands `probs` p to a
    cross-entropy that takes logits, so that p goes through a second softmax: mean(-p_y + log sum_k exp(p_k)). That is
    never below 0.55 for three classes, and sure mistakes have almost no gradient. With class weights the mean is
    weighted by those of the voxels' labels.

    `dice` is -sum_c 2 sum(p_c t_c) / (sum p_c + sum t_c + 1e-7) with one-hot labels t, between -C and 0. Sums run over
    the whole batch, and the background counts as a class.

    `dice_ce` is `dice` / C + `ce`, where the method leaves the loss open.

    Args:
        kind: `ce`, `dice` or `dice_ce`.
        hard_on: what the cross-entropy is taken of, `logits` or `probs`. The Dice loss does not depend on it.
        temperature: the T.
        class_weights: weight of every class in the cross-entropy, background first; by default all count alike.

    Raises:
        InputError: when an argument is none of these, the temperature is not positive, a weight is negative, no weight
            is positive, or the Dice loss gets weights.
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        kind: str = "ce",
        *,
        hard_on: str = "logits",
        temperature: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("hard_loss", kind, among=("ce", "dice", "dice_ce"))
        _check_choice("hard_on", hard_on, among=("logits", "probs"))
        _check_number("temperature", temperature, is_right=temperature > 0, rule="must be positive and finite")
        _check_weights(class_weights, kind=kind)
        self.kind = kind
        self.hard_on = hard_on
        self.temperature = temperature
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
        self.register_buffer("weight", weight, persistent=False)
        self.dice = DiceLoss(to_onehot_y=True, batch=True, reduction="sum", smooth_nr=0, smooth_dr=1e-7)

    def forward(self, logits: Logits, label: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss; that of deep supervision is the sum over the outputs, each with the weight 1.

        Args:
            logits: `(B, C, ...)`, or several such of one size.
            label: class indices `(B, 1, ...)`.
        """
        outputs = [logits] if isinstance(logits, torch.Tensor) else logits
        return torch.stack([self._loss(output, label) for output in outputs]).sum()

    def _loss(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        scores = tempered(logits, self.temperature)
        classes = scores.shape[1]
        dice = torch.zeros(()) if self.kind == "ce" else self.dice(scores.softmax(1), label) - classes
        if self.kind == "dice":
            return dice
        if self.hard_on == "probs":
            scores = scores.softmax(1)
        weight = None if self.weight is None else self.weight.to(scores)
        return functional.cross_entropy(scores, label[:, 0].long(), weight=weight) + dice.to(scores) / classes


class DistillationLoss(nn.Module):
    """Loss of the student: soft + alpha * hard (Noothout et al., J. Med. Imaging 9(5) 052407, 2022).

    With p = softmax(z / T) and the mean probabilities q of the ensemble, the soft term is sum_c mean((p_c - q_c)^2), or
    the cross-entropy mean(-sum_c q_c log p_c). The hard term is the cross-entropy against the labels, see `HardLoss`.
    The soft term is not scaled by T^2, and q is taken as it is.

    Args:
        alpha: weight of the hard term; at 0 it is not computed and no label is needed.
        soft: `mse` or `ce`.
        hard_on: see `HardLoss`.
        temperature: the T of both terms.
        class_weights: those of the hard term, see `HardLoss`.
        alone: kind of the loss against labels where there are no soft labels, see `HardLoss`.

    Raises:
        InputError: when alpha is negative or not finite, `soft` is neither of both, or `HardLoss` rejects the others.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        soft: str = "mse",
        *,
        hard_on: str = "logits",
        temperature: float = 1.0,
        class_weights: Sequence[float] | None = None,
        alone: str = "ce",
    ) -> None:
        super().__init__()
        _check_number("alpha", alpha, is_right=alpha >= 0, rule="must be finite and not negative")
        _check_choice("soft", soft, among=("mse", "ce"))
        self.alpha = alpha
        self.soft = soft
        self.hard = HardLoss(hard_on=hard_on, temperature=temperature, class_weights=class_weights)
        self.alone = HardLoss(alone, hard_on=hard_on, temperature=temperature, class_weights=class_weights)

    def forward(self, logits: Logits, target: Mapping[str, torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss.

        Args:
            logits: `(B, C, ...)`; of the outputs of deep supervision only the first, the main one, is taught.
            target: `soft`, the probabilities `(B, C, ...)`, and `label`, class indices `(B, 1, ...)`; or labels alone,
                for example in retraining on a user's cases: the loss is that of `alone` then, with the weight 1.

        Raises:
            ValueError: when logits and soft labels differ in shape.
        """
        if isinstance(target, torch.Tensor):
            return self.alone(logits, target)
        main = logits if isinstance(logits, torch.Tensor) else logits[0]
        if main.shape != target["soft"].shape:
            raise ValueError(f"soft labels are {tuple(target['soft'].shape)}, the logits {tuple(main.shape)}")
        loss = self._soft(main, target["soft"])
        return loss + self.alpha * self.hard(main, target["label"]) if self.alpha else loss

    def _soft(self, logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        scores = tempered(logits, self.hard.temperature)
        soft = soft.to(scores)
        if self.soft == "ce":
            return functional.cross_entropy(scores, soft)
        return scores.shape[1] * functional.mse_loss(scores.softmax(1), soft)


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns z / T in single precision, or in double where the logits are; autocast yields half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _check_choice(name: str, value: Any, *, among: Sequence[str]) -> None:
    if value not in among:
        raise InputError([("", name, f"must be one of {', '.join(among)}, got {value!r}")])


def _check_number(name: str, value: float, *, is_right: bool, rule: str) -> None:
    if not (is_right and math.isfinite(value)):
        raise InputError([("", name, f"{rule}, got {value}")])


def _check_weights(weights: Sequence[float] | None, *, kind: str) -> None:
    if weights is None:
        return
    if kind == "dice":
        raise InputError([("", "class_weights", f"belong to the cross-entropy, got {list(weights)} for the Dice loss")])
    is_right = all(weight >= 0 for weight in weights) and math.isfinite(sum(weights)) and sum(weights) > 0
    if not is_right:
        rule = f"must be finite, none negative and one of them positive, got {list(weights)}"
        raise InputError([("", "class_weights", rule)])
