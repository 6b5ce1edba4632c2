"""The golden file of cooperative training: weights and inputs are functions of names and indices, maps are digests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cooperative_training.networks import CooperativeNetwork
from tools import REPO

BUNDLE = "cooperative_training_acdc_mri"
GOLDEN = np.load(REPO / "tests/bundles/cooperative_training/golden.npz")
NETS = ("image_encoder", "segmentation_decoder", "image_decoder", "shape_encoder", "shape_decoder")
SIZE = 96


@cache
def phantoms() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, label and noisy image of the golden file, `(4, 1, 96, 96)` each; classes are 1 LV, 2 MYO, 3 RV."""
    random = np.random.RandomState(20210702)
    row, column = np.mgrid[:SIZE, :SIZE]
    images, labels = np.empty((2, 4, 1, SIZE, SIZE))
    for i, noise in enumerate(random.standard_normal((4, SIZE, SIZE))):
        y = row / SIZE - 0.45 - 0.03 * i
        label = np.where((y / 0.13) ** 2 + ((column / SIZE - 0.31 - 0.008 * i) / 0.1) ** 2 < 1, 3, 0)
        radius = np.hypot(y, column / SIZE - 0.52 - 0.02 * i)
        label[radius < 0.14 + 0.012 * i] = 2
        label[radius < 0.09 + 0.01 * i] = 1
        image = np.array([0, 0.6, 0.15, 0.45])[label] + 0.1 * np.cos(row / 11) * np.sin(column / 9 + i) + 0.05 * noise
        images[i, 0] = (image - image.min()) / np.ptp(image)
        labels[i, 0] = label
    noisy = np.clip(images + 0.05 * random.standard_normal(images.shape), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(noisy)


def filled(network: nn.Module) -> Any:
    """Fills a network in place with the golden weights, in double precision, and returns it."""
    state = {}
    for name, module in network.named_modules():
        for key, tensor in module.state_dict(prefix=f"{name}.").items():
            if key.count(".") == name.count(".") + 1:
                state[key] = _value(key, tuple(tensor.shape), is_norm=isinstance(module, _BatchNorm))
    network.double().load_state_dict(state)
    return network


def _value(name: str, shape: tuple[int, ...], *, is_norm: bool) -> torch.Tensor:
    random, kind = np.random.RandomState(crc32(name.encode())), name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(0)
    if kind == "running_var":
        return torch.from_numpy(0.5 + random.random_sample(shape))
    normal = torch.from_numpy(np.asarray(random.standard_normal(shape)))
    if len(shape) == 4:
        return normal / float(np.sqrt(np.prod(shape[1:])))
    if is_norm:
        return 1 + 0.1 * normal if kind == "weight" else 0.1 * normal
    return 0.05 * normal


def golden_network(**kwargs: Any) -> CooperativeNetwork:
    """Network with the golden weights, in training mode."""
    network: CooperativeNetwork = filled(CooperativeNetwork(**kwargs)).train()
    return network


def config(*stems: str, network: CooperativeNetwork, **overrides: Any) -> ConfigParser:
    """Parser of `train.yaml` and overlays of it for this network; `__` in an override's name stands for `::`."""
    parser = ConfigParser()
    parser.read_config([REPO / "bundles" / BUNDLE / "configs" / f"{stem}.yaml" for stem in ("train", *stems)])
    parser.update({"network": network} | {key.replace("__", "::"): value for key, value in overrides.items()})
    return parser


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch-normalisation layers in the order of the network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields name and module of the five networks."""
    yield from ((name, network.get_submodule(name)) for name in NETS)


def gradient_norms(network: nn.Module) -> np.ndarray:
    """Norm of the gradient of convolutions and of batch normalisation, for each of the five networks."""
    rows = []
    for _, part in parts(network):
        affine = {id(parameter) for layer in norms(part) for parameter in layer.parameters()}
        square = [0.0, 0.0]
        for parameter in part.parameters():
            if parameter.grad is not None:
                square[id(parameter) in affine] += float(parameter.grad.square().sum())
        rows.append(np.sqrt(square))
    return np.stack(rows)


def parameter_sums(part: nn.Module) -> list[float]:
    """Sum of every parameter."""
    return [parameter.detach().sum().item() for parameter in part.parameters()]


def assert_statistics(network: nn.Module, prefix: str) -> None:
    """Compares the counters of batch normalisation with the golden ones exactly, its means to 1e-8."""
    for name, part in parts(network):
        (count,) = GOLDEN[f"{prefix}/bn_tracked/{name}"]
        assert {int(layer.num_batches_tracked or 0) for layer in norms(part)} == {count}, name
        sums = [layer.running_mean.sum().item() for layer in norms(part) if layer.running_mean is not None]
        assert_close(sums, f"{prefix}/bn_mean_sum/{name}")


def assert_close(value: Any, key: str, *, rtol: float = 1e-8) -> None:
    """Compares numbers with a golden array, relative to its largest."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    np.testing.assert_allclose(value, GOLDEN[key], rtol=0, atol=rtol * abs(GOLDEN[key]).max(), err_msg=key)


def assert_digest(value: torch.Tensor, key: str, *, rtol: float = 1e-8) -> None:
    """Compares a map `(B, C, H, W)` with the golden digest: every 16th pixel of a coarse grid, and five moments."""
    value = value.detach()
    moments = [value.mean(), value.abs().mean(), value.square().mean(), value.min(), value.max()]
    assert_close(torch.cat([value[..., ::4, ::4].flatten()[::16], torch.stack(moments)]), key, rtol=rtol)
