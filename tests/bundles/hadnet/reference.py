"""The golden file of HAD-Net: weights, inputs and labels are hashes of names and indices, large arrays are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import nn

from hadnet.networks import Discriminator, SegmentationNetwork
from tools import REPO
from tools.convert import KeyMap, load_key_map

BUNDLE = "hadnet_brats_mri"
GOLDEN = np.load(REPO / "tests/bundles/hadnet/golden.npz")
SIZES = {"step": (32, 48, 64), "odd": (35, 40, 33)}
FILTERS = 8
STUDENT = [0, 2, 3]  # channels of the teacher's FLAIR, T1ce, T1, T2
PREFIXES = {"teacher": "teacher", "student": "student", "discriminator": "disc"}  # of names in the golden file

Array = NDArray[Any]


def whole_convolutions() -> Iterator[None]:
    """Fixture: convolutions as PyTorch makes them. In halves they round otherwise, as far from the truth as these."""
    with patch("hadnet.shared.convolutions.SMALL", 0):
        yield


def uniform(name: str, shape: Sequence[int]) -> Array:
    """Numbers in [0, 1), a hash of the name and of the position in C order."""
    x: Array = (np.arange(prod(shape), dtype=np.uint64) * 2654435761 + crc32(name.encode())) % 2**32
    for _ in range(2):
        x = (x ^ x >> 16) * 0x45D9F3B % 2**32
    return ((x ^ x >> 16) / 2**32).reshape(shape)


def image(tag: str) -> torch.Tensor:
    """Scan of the teacher, `(1, 4, ...)`."""
    return torch.from_numpy(uniform(f"x_teacher/{tag}", (1, 4, *SIZES[tag]))).float()


def label(tag: str) -> torch.Tensor:
    """Class indices, `(1, 1, ...)`."""
    return torch.from_numpy(np.digitize(uniform(f"y/{tag}", (1, 1, *SIZES[tag])), [0.85, 0.9, 0.96]))


def batch() -> dict[str, torch.Tensor]:
    """What every golden step learns from."""
    return {"image": image("step"), "label": label("step")}


def names(role: str) -> dict[str, tuple[int, ...]]:
    """The reference's parameters in its order, with their shapes."""
    rows = (row.split("|") for row in GOLDEN[f"names/{PREFIXES[role]}"].tolist())
    return {key: tuple(map(int, shape.split("x"))) for key, shape in rows}


@cache
def reference_state(role: str) -> dict[str, torch.Tensor]:
    """The golden weights in the reference's names."""
    return {key: torch.from_numpy(_value(f"{PREFIXES[role]}/{key}", shape)) for key, shape in names(role).items()}


def _value(name: str, shape: Sequence[int]) -> Array:
    signed = 2 * uniform(name, shape) - 1
    if len(shape) == 5:
        signed = signed * np.sqrt(3) * np.sqrt(2 / prod(shape[1:]))
    elif name.endswith("inst.weight"):
        signed = 1 + 0.2 * signed
    else:
        signed = 0.1 * signed
    return np.asarray(signed, np.float32)


def key_map(role: str, network: nn.Module) -> KeyMap:
    """Our names and the reference's for a network of any number of filters."""
    return load_key_map(BUNDLE, role, state=network.state_dict())


def segmentation(role: str, *, dropout: float = 0.0) -> SegmentationNetwork:
    """Teacher or student with the golden weights."""
    return _filled(SegmentationNetwork(4 if role == "teacher" else 3, filters=FILTERS, dropout=dropout), role)


def discriminator() -> Discriminator:
    """The discriminator with the golden weights."""
    return _filled(Discriminator(7, filters=FILTERS), "discriminator")


def _filled(network: Any, role: str) -> Any:
    network.load_state_dict(key_map(role, network).to_ours(reference_state(role)))
    return network


def config(*stems: str, **overrides: Any) -> ConfigParser:
    """Parser of config files on the CPU; `__` in an override's name stands for `::`."""
    parser = ConfigParser()
    parser.read_config([REPO / "bundles" / BUNDLE / "configs" / f"{stem}.yaml" for stem in stems])
    parser.update({"device": torch.device("cpu"), "amp": False})
    parser.update({key.replace("__", "::"): value for key, value in overrides.items()})
    return parser


def statistics(value: torch.Tensor | Array) -> Array:
    """Sum, sum of magnitudes, L2 norm, minimum, maximum, and 8 values from the first to the last, evenly spaced."""
    flat = np.asarray(value, np.float64).ravel()
    samples = flat[torch.linspace(0, flat.size - 1, 8).long()]  # in single precision: not always numpy's positions
    return np.array([flat.sum(), abs(flat).sum(), np.linalg.norm(flat), flat.min(), flat.max(), *samples])


def table(role: str, network: nn.Module, *, gradients: bool = False) -> dict[str, Array | None]:
    """Statistics of every parameter, or of its gradient, in the reference's names and order."""
    ours = {theirs: ours for ours, theirs in key_map(role, network).names.items()}
    parameters = [network.get_parameter(ours[key]) for key in names(role)]
    tensors = [parameter.grad if gradients else parameter.detach() for parameter in parameters]
    return dict(zip(names(role), (None if x is None else statistics(x) for x in tensors), strict=True))


def is_idle(role: str, key: str) -> bool:
    """Whether a parameter does nothing: biases ahead of a normalisation, whose gradients are noise of rounding."""
    if role == "discriminator":
        return key in ("disc_2.0.bias", "disc_3.0.bias", "disc_4.0.bias")
    return key.endswith(("conv.bias", "conv_up.bias"))
