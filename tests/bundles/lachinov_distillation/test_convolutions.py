"""The bundle's convolutions give what PyTorch's do, gradients too; which volumes are halved."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional

from lachinov_distillation.networks import JoiningConv3d
from lachinov_distillation.shared.convolutions import HalvedConv3d

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
    with patch.object(layer, "_conv_forward", side_effect=layer._conv_forward) as plainly:
        found = layer(x)
    assert plainly.called == (shape in WHOLE)
    sources = [x, *layer.parameters()]
    torch.testing.assert_close(results(found, *sources), results(expected, *sources))


def test_what_is_exported_is_not_halved() -> None:
    """A trace of a small volume serves large and odd ones, and so does a script."""
    layer, small = HalvedConv3d(2, 3), torch.randn(1, 2, 8, 8, 8)
    exported = [torch.jit.trace(layer, small), torch.jit.script(layer)]  # type: ignore[no-untyped-call]
    for shape in ((1, 2, 8, 8, 8), (1, 2, 11, 6, 7), (2, 2, 8, 8, 8), (1, 2, 104, 104, 4)):
        x = torch.randn(shape)
        for module in exported:
            torch.testing.assert_close(module(x), layer(x))
            assert "aten::pad" not in str(module.graph)


def test_inputs_are_joined_in_order() -> None:
    torch.manual_seed(0)
    layer = JoiningConv3d(6, 4).double()
    inputs = [torch.randn(2, channels, 3, 5, 4, dtype=torch.float64, requires_grad=True) for channels in (2, 4)]
    expected = functional.conv3d(torch.cat(inputs, 1), layer.weight)
    sources = [*inputs, *layer.parameters()]
    torch.testing.assert_close(results(layer(*inputs), *sources), results(expected, *sources))
    x = torch.randn(2, 6, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.conv3d(x, layer.weight))
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


def test_parameters_are_those_of_a_convolution() -> None:
    assert {key: tuple(value.shape) for key, value in JoiningConv3d(6, 4).state_dict().items()} == {
        "weight": (4, 6, 1, 1, 1)
    }
    assert {key: tuple(value.shape) for key, value in HalvedConv3d(6, 4).state_dict().items()} == {
        "weight": (4, 6, 3, 3, 3),
        "bias": (4,),
    }
