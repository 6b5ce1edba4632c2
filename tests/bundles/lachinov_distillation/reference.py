"""The golden file of lachinov_distillation_brats_mri: weights and inputs are random numbers seeded by their names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lachinov_distillation.networks import ResUNet
from tools import REPO
from tools.convert import KeyMap, load_key_map

BUNDLE = "lachinov_distillation_brats_mri"
GOLDEN = np.load(REPO / "tests/bundles/lachinov_distillation/golden.npz")

Array = NDArray[Any]


def rng(name: str) -> np.random.RandomState:
    """Generator of one array."""
    return np.random.RandomState(crc32(name.encode()) & 0x7FFFFFFF)


def normal(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Input of a network, or what a test makes of it."""
    return torch.from_numpy(rng(f"x:{name}").standard_normal(shape).astype(np.float32))


def soft_regions(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Nested soft regions, `(B, 3, ...)`; above 0.6 they are the hard ones."""
    return torch.from_numpy(-np.sort(-rng(f"y:{name}").uniform(size=shape), axis=1).astype(np.float32))


def weight(key: str, shape: Sequence[int]) -> torch.Tensor:
    """Parameter of that name in the reference."""
    value: Array = rng(f"w:{key}").standard_normal(shape)
    if len(shape) > 1:
        value = value * np.sqrt(2 / prod(shape[1:])) * (0.25 if key == "conv_output.weight" else 1)
    else:
        value = 1 + 0.1 * value if key.endswith(".weight") else 0.1 * value
    return torch.from_numpy(value.astype(np.float32))


def names() -> dict[str, tuple[int, ...]]:
    """The reference's parameters in its order, with their shapes."""
    rows = (row.split("|") for row in GOLDEN["names"].tolist())
    return {key: tuple(map(int, shape.split("x"))) for key, shape in rows}


@cache
def reference_state() -> dict[str, torch.Tensor]:
    """The golden weights in the reference's names."""
    return {key: weight(key, shape) for key, shape in names().items()}


def key_map(network: nn.Module) -> KeyMap:
    """Our names and the reference's."""
    return load_key_map(BUNDLE, state=network.state_dict())


def student(upsampling: str = "trilinear") -> ResUNet:
    """The student with the golden weights."""
    network = ResUNet(upsampling=upsampling)
    network.load_state_dict(key_map(network).to_ours(reference_state()))
    return network
