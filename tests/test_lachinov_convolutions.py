"""The bundle's convolutions give what PyTorch's do, gradients too; which volumes are halved."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

from lachinov_distillation.convolutions import HalvedConv3d, JoiningConv3d

HALVED = [(1, 4, 16, 8, 6), (1, 3, 8, 4, 10), (1, 20, 32, 32, 3)]
WHOLE = [
    (2, 4, 16, 8, 6),  # a batch
    (1, 4, 9, 8, 6),  # no halves
    (1, 4, 6, 8, 6),  # halves of little but overlap
    (1, 21, 32, 32, 3),  # left to oneDNN
]


def results(outputs: torch.Tensor, *sources: torch.Tensor) -> list[torch.Tensor]:
    """The outputs, and gradients of a sum that weighs every output differently."""
    weights = torch.linspace(-1, 2, outputs.numel()).view_as(outputs)
    return [outputs, *torch.autograd.grad((outputs * weights).sum(), sources)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", HALVED + WHOLE)
def test_halves_make_up_the_whole(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = HalvedConv3d(shape[1], 5, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = functional.conv3d(x, layer.weight, layer.bias, padding=1)
    with patch.object(nn.Conv3d, "forward", autospec=True, side_effect=nn.Conv3d.forward) as plainly:
        found = layer(x)
    assert plainly.called == (shape in WHOLE)
    sources = [x, *layer.parameters()]
    torch.testing.assert_close(results(found, *sources), results(expected, *sources))


def test_what_is_exported_is_not_halved() -> None:
    """A trace of a small volume serves large and odd ones."""
    layer = HalvedConv3d(2, 3)
    traced = torch.jit.trace(layer, torch.randn(1, 2, 8, 8, 8))  # type: ignore[no-untyped-call]
    for shape in ((1, 2, 11, 6, 7), (2, 2, 8, 8, 8), (1, 2, 104, 104, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), layer(x))


def test_inputs_are_joined_in_order() -> None:
    torch.manual_seed(0)
    layer = JoiningConv3d(6, 4).double()
    inputs = [torch.randn(2, channels, 3, 5, 4, dtype=torch.float64, requires_grad=True) for channels in (1, 2, 3)]
    expected = functional.conv3d(torch.cat(inputs, 1), layer.weight)
    sources = [*inputs, *layer.parameters()]
    torch.testing.assert_close(results(layer(*inputs), *sources), results(expected, *sources))


def test_parameters_are_those_of_a_convolution() -> None:
    assert {key: tuple(value.shape) for key, value in JoiningConv3d(6, 4).state_dict().items()} == {
        "weight": (4, 6, 1, 1, 1)
    }
    assert {key: tuple(value.shape) for key, value in HalvedConv3d(6, 4).state_dict().items()} == {
        "weight": (4, 6, 3, 3, 3),
        "bias": (4,),
    }
