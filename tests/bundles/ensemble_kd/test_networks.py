"""Properties of the networks of ensemble_kd_kits_ct; the golden numbers are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from ensemble_kd.shared.validation import InputError
from tests.bundles.ensemble_kd.reference import count, filled, noise, without_dropout

# Networks so small that tests of all of them take no time, and a size of their input.
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dilated": (lambda: DilatedCNN(3, 35, channels=2), (37, 36)),
    "resnet_2d": (lambda: ResNet(2, 3, channels=2, blocks=2), (8, 12)),
    "resnet_3d": (lambda: ResNet(3, 3, channels=2, blocks=1), (8, 4, 8)),
    "unet_2d": (lambda: UNet(2, 3, channels=(2, 3, 4)), (8, 12)),
    "unet_3d": (lambda: UNet(3, 3, channels=(2, 3)), (2, 4, 6)),
    "deep_unet": (lambda: UNet(2, 3, channels=(2, 3, 4, 5), deep_supervision=True), (16, 8)),
}
each_small = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small(name: str, *, batch: int = 2) -> tuple[Any, torch.Tensor]:
    """A small network with random parameters in evaluation, and a batch for it."""
    build, size = SMALL[name]
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in network.buffers():
            if buffer.ndim:
                buffer.add_(0.2 * torch.rand_like(buffer))
    return network.eval(), torch.randn(batch, 1, *size)


@pytest.mark.parametrize("receptive_field", [35, 67, 131])
def test_slice_equals_its_patches(receptive_field: int) -> None:
    """A slice padded by half the receptive field gives a pixel for a pixel, patches of it the same ones."""
    network, half = filled(DilatedCNN(3, receptive_field)).double().eval(), receptive_field // 2
    padded = nn.functional.pad(noise(1, 1, 30, 26), [half] * 4)
    with torch.no_grad():
        whole = network(padded)
        assert whole.shape == (1, 3, 30, 26)
        for y, x in ((0, 0), (7, 13), (19, 15)):  # corners of labels of 11 x 11
            patch = padded[..., y : y + 10 + receptive_field, x : x + 10 + receptive_field]
            torch.testing.assert_close(network(patch), whole[..., y : y + 11, x : x + 11], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DilatedCNN(2, 36), "receptive_field: must be one of 35, 67, 131, got 36"),
        (lambda: ResNet(1, 2), "spatial_dims: must be 2 or 3, got 1"),
        (lambda: UNet(4, 2), "spatial_dims: must be 2 or 3, got 4"),
        (lambda: UNet(2, 2, channels=[32]), r"channels: must be of two resolutions or more, got \[32\]"),
        (lambda: UNet(2, 2, channels=()), r"channels: must be of two resolutions or more, got \[\]"),
    ],
)
def test_arguments_that_do_not_fit(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "divisor"), [("resnet_2d", 4), ("resnet_3d", 4), ("unet_3d", 2), ("unet_2d", 4), ("deep_unet", 8)]
)
def test_sizes(name: str, divisor: int) -> None:
    network, x = small(name, batch=1)
    spatial = x.ndim - 2
    fitting = torch.randn(1, 1, *[divisor] * (spatial - 1), 3 * divisor)
    assert network(fitting).shape == (1, 3, *fitting.shape[2:])
    for wrong in ([divisor] * (spatial - 1) + [divisor + 1], [divisor + divisor // 2] + [divisor] * (spatial - 1)):
        with pytest.raises(InputError, match=rf"image: must be multiples of {divisor}, got \[{wrong[0]}, "):
            network(torch.randn(1, 1, *wrong))


def test_slice_smaller_than_the_receptive_field() -> None:
    network, _ = small("dilated")
    assert network(torch.randn(1, 1, 35, 36)).shape == (1, 3, 1, 2)
    with pytest.raises(InputError, match=r"image: must be at least 35 pixels wide, got \[40, 34\]"):
        network(torch.randn(1, 1, 40, 34))


def test_divisor_of_the_u_net() -> None:
    assert UNet(2, 2).divisor == 8


@each_small
def test_scripted_equals_eager(name: str) -> None:
    network, x = small(name)
    scripted = torch.jit.script(network)
    assert torch.equal(scripted(x), network(x))
    network = without_dropout(network.train())
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x), network(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("dilated", (40, 34)), ("unet_2d", (8, 14))])
def test_scripted_complains_about_sizes(name: str, size: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"Kernel size|Sizes of tensors"):
        torch.jit.script(small(name)[0])(torch.randn(1, 1, *size))


@each_small
def test_channels_last(name: str) -> None:
    """It arrives at the head unchanged, whose 1 x 1 x 1 convolutions on CPUs know no other, and makes no difference."""
    network, x = small(name)
    memory_format = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    expected, arrived = network(x), []
    head = network.head if hasattr(network, "head") else network.decoder[-1].head
    head.register_forward_pre_hook(lambda _, given: arrived.append(given[0].is_contiguous(memory_format=memory_format)))
    found = network.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    assert arrived == [True]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@each_small
def test_in_place_operations_leave_gradients_right(name: str) -> None:
    """Against finite differences, in double precision, of the input and of all parameters, in training."""
    network, x = small(name)
    network = without_dropout(network.double().train())
    names = [key for key, _ in network.named_parameters()]

    def score(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        found = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,))
        return sum(part.square().mean() for part in (found if isinstance(found, list) else [found]))

    assert torch.autograd.gradcheck(score, (x.double().requires_grad_(), *network.parameters()), fast_mode=True)


@each_small
def test_all_parameters_are_used(name: str) -> None:
    """Distributed training does not take parameters without gradients. The input stays as it is."""
    network, x = small(name)
    before = x.clone()
    found = network.train()(x)
    sum(part.square().mean() for part in (found if isinstance(found, list) else [found])).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []
    assert torch.equal(x, before)


def test_dropout_in_training_only() -> None:
    for name in ("dilated", "resnet_2d"):
        network, x = small(name)
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


def test_sizes_of_layers() -> None:
    """Weights, biases and normalisations, counted by hand."""
    assert count(DilatedCNN(2, 35, in_channels=3, channels=1)) == 28 + 5 * 10 + 2 + 2 * 3 + 6 + 4 * 6 + 7 * 2
    entry, halvings = (3 * 9 + 1) + 2, (9 + 1) * 2 + 4 + (2 * 9 + 1) * 4 + 8
    block, ascent = 2 * (8 + (4 * 9 + 1) * 4), (4 * 9 + 1) * 2 + 4 + (2 * 9 + 1) + 2
    resnet = ResNet(2, 5, in_channels=3, channels=1, blocks=2)
    assert count(resnet) == entry + halvings + 2 * block + ascent + 2 + 2 * 5
    unet = UNet(2, 5, in_channels=3, channels=(1, 2))
    down = (28 + 2 + 10 + 2) + ((9 + 1) * 2 + 4 + (18 + 1) * 2 + 4)
    assert count(unet) == down + (2 * 4 + 1) + (19 + 2 + 10 + 2) + 2 * 5
