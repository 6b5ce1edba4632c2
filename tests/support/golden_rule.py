"""Weights of the V-Net golden tensors: every value is a function of the parameter's name in the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from zlib import crc32

import numpy as np
import torch


def reference_state(shapes: Iterable[tuple[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Returns the state dict that the golden file was computed with, for the reference's names and shapes."""
    return {name: torch.from_numpy(np.asarray(_value(name, tuple(shape)))) for name, shape in shapes}


def _value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    normal = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    if kind == "running_mean":
        normal = 0.1 * normal
    elif kind == "running_var":
        normal = 1 + 0.25 * abs(normal)
    elif kind == "bias":
        normal = 0.05 * normal
    elif len(shape) > 1:
        normal = normal * math.sqrt(2 / (math.prod(shape[2:]) * (shape[0] + shape[1])))
    elif "relu" in name:
        normal = 0.25 + 0.05 * normal
    else:
        normal = 1 + 0.1 * normal
    return normal.astype(np.float32)
