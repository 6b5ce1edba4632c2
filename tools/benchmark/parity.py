"""The parity gate: a measurement counts only if the outputs agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tools.benchmark.case import Outputs


@dataclass(frozen=True)
class Parity:
    """Agreement of one variant with `eager`.

    Attributes:
        agrees: Whether every output lies within `atol + rtol * |eager|`.
        deviation: Largest absolute deviation of all outputs; `None` where none can be stated.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        reason: Why it does not agree, else empty.
    """

    agrees: bool
    deviation: float | None
    atol: float
    rtol: float
    reason: str = ""


def snapshot(outputs: Outputs, path: str = "") -> dict[str, torch.Tensor]:
    """Copy nested outputs to the CPU as float64.

    Args:
        outputs: Tensors, arrays or numbers, nested in mappings and sequences; `None` stands for nothing.
        path: Position of `outputs` in the whole.

    Returns:
        Copies by position, such as `/logits/0`.
    """
    if outputs is None:
        return {}
    if isinstance(outputs, Mapping):
        parts = list(outputs.items())
    elif isinstance(outputs, (list, tuple)):
        parts = list(enumerate(outputs))
    else:
        leaf = torch.as_tensor(outputs).detach().as_subclass(torch.Tensor)
        return {path or "/": leaf.to("cpu", torch.float64, copy=True)}
    return {leaf: value for key, part in parts for leaf, value in snapshot(part, f"{path}/{key}").items()}


def compare(
    actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, atol: float, rtol: float
) -> Parity:
    """Compare two snapshots; equal infinities agree, a NaN agrees with nothing.

    Args:
        actual: Snapshot of the variant under test.
        expected: Snapshot of `eager`.
        atol: Absolute tolerance.
        rtol: Relative tolerance, as a share of `|expected|`.

    Returns:
        The verdict, with the first output that breaks it.
    """
    shapes = [{leaf: tuple(value.shape) for leaf, value in outputs.items()} for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        return Parity(False, None, atol, rtol, f"outputs {shapes[0]}, eager has {shapes[1]}")
    largest, reason = 0.0, ""
    for leaf, value in expected.items():
        gap = torch.where(actual[leaf] == value, 0.0, (actual[leaf] - value).abs())
        if not gap.numel():
            continue
        largest = max(largest, gap.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item())
        # An infinite reference has an infinite tolerance: its gap has to be exactly zero.
        limit = torch.where(value.isfinite(), atol + rtol * value.abs(), 0.0)
        if not reason and not bool((gap <= limit).all()):
            reason = f"output {leaf} is off by up to {gap.max().item():.3g}, tolerance {atol:g} + {rtol:g}*|eager|"
    return Parity(not reason, largest if largest < torch.inf else None, atol, rtol, reason)
