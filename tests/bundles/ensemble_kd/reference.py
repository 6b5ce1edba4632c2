"""Golden weights of ensemble_kd_kits_ct: random numbers, seeded by an entry's place in the reference's state dict."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ensemble_kd.networks import UNet

Array = NDArray[Any]
Network = TypeVar("Network", bound=nn.Module)


def filled(network: Network) -> Network:
    """Fills the network with the golden weights, which are in single precision, and returns it."""
    state, places = network.state_dict(), {name: place for place, name in enumerate(order(network))}
    network.load_state_dict({name: weight(places[name], name, old.shape) for name, old in state.items()})
    return network


def order(network: nn.Module) -> list[str]:
    """Our names in the reference's order. Its U-Nets always have auxiliary heads, which take places too."""
    if isinstance(network, UNet) and not network.deep_supervision:
        with torch.device("meta"):
            network = UNet(2, 1, deep_supervision=True)
    return list(network.state_dict())


def weight(place: int, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Value of the entry at that place, whose name ends like ours."""
    rng, kind = np.random.RandomState(1000 + place), name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(0)
    if kind == "running_var":
        return torch.from_numpy(0.5 + rng.rand(*shape)).float()
    value: Array = rng.randn(*shape)
    if len(shape) > 1:
        value = value * np.sqrt(2 / prod(shape[1:]))
    else:
        value = 1 + 0.1 * value if kind == "weight" else 0.1 * value
    return torch.from_numpy(value).float()


def noise(*shape: int) -> torch.Tensor:
    """Golden input of a network."""
    return torch.from_numpy(np.random.RandomState(7).randn(*shape))


def count(network: nn.Module) -> int:
    """Parameters of the network."""
    return sum(parameter.numel() for parameter in network.parameters())


def without_dropout(network: Network) -> Network:
    """The network, which now drops nothing in training either."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return network
