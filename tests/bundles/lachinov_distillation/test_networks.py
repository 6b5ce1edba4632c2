"""Properties of the networks of lachinov_distillation_brats_mri; the golden numbers are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lachinov_distillation.cascade import CascadedUNet
from lachinov_distillation.losses import CascadeLoss
from lachinov_distillation.networks import ResUNet

State = Mapping[str, torch.Tensor]
SMALL: dict[str, Any] = {"channels": (8, 16), "encoder_blocks": (1, 1), "decoder_blocks": (1,)}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def randomised(network: Any) -> Any:
    """Parameters whose biases and normalisations do something, too."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@cache
def scan() -> torch.Tensor:
    return torch.rand((2, 4, 32, 64, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_blocks": (1, 2, 2)}, "one width too many or too few"),
        ({"decoder_blocks": (1, 1, 1, 1)}, "one width too many or too few"),
        ({"channels": (16, 32, 64)}, "one width too many or too few"),
        ({"upsampling": "linear"}, "upsampling must be 'trilinear' or 'nearest', got 'linear'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResUNet(**arguments)


def test_levels_and_blocks() -> None:
    """Levels follow the widths; a block of width c has 2 * 27 c^2 weights and 4 c of its normalisations."""
    block = 2 * 27 * 8**2 + 4 * 8
    entry, join, head = 27 * 2 * 8 + 2 * 8, 3 * 8**2, 27 * 8 + 1
    network = ResUNet(2, 1, channels=(8, 8, 8), encoder_blocks=(1, 0, 3), decoder_blocks=(2, 1))
    assert count(network) == entry + 7 * block + 2 * (8 * 8**2 + join) + head
    assert network(torch.zeros(1, 2, 4, 8, 4)).shape == (1, 1, 4, 8, 4)
    assert count(ResUNet(groups=4)) == count(ResUNet())


@pytest.mark.parametrize(("network", "size"), [(ResUNet(), 8), (ResUNet(**SMALL), 2), (CascadedUNet(base=1), 32)])
def test_sizes(network: nn.Module, size: int) -> None:
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 4, size, size, 2 * size)).shape[2:] == (size, size, 2 * size)
    for wrong in ((size, size, size // 2), (3 * size // 2, size, size)):
        with pytest.raises(ValueError, match=f"every spatial size must be a multiple of {size}, got"):
            network(torch.zeros(1, 4, *wrong))


def test_cascade_needs_something_to_normalise() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        CascadedUNet(base=1)(torch.zeros(1, 4, 32, 32, 32))


def test_options_change_what_comes_out() -> None:
    network, x = ResUNet(**SMALL), scan()[:1, :, :8, :8, :8]
    for variant in (ResUNet(**SMALL, upsampling="nearest"), ResUNet(**SMALL, groups=2)):
        variant.load_state_dict(network.state_dict())
        assert (variant(x) - network(x)).abs().max() > 1e-3


def test_logits_in_training_as_in_evaluation() -> None:
    network, x = randomised(ResUNet(**SMALL)), scan()[:, :, :8, :8, :8]
    evaluated = network(x)
    assert torch.equal(network.train()(x), evaluated)
    assert evaluated.min() < 0  # no probabilities
    assert evaluated.max() > 1


@pytest.mark.parametrize("upsampling", ["trilinear", "nearest"])
def test_trace_takes_other_sizes(upsampling: str) -> None:
    network = randomised(ResUNet(**SMALL, upsampling=upsampling))
    with torch.no_grad():
        traced = torch.jit.trace(network, scan()[:1, :, :8, :8, :8])  # type: ignore[no-untyped-call]
        other = scan()[:, :, :6, :12, :10]
        torch.testing.assert_close(traced(other), network(other), rtol=0, atol=1e-5)


def test_in_place_activations_leave_gradients_right() -> None:
    """Against finite differences, in double precision; of inputs and of all parameters."""
    network = randomised(ResUNet(1, 1, **SMALL, groups=4)).double()
    names = [name for name, _ in network.named_parameters()]

    def score(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(network, parameters, (x,)).square().mean()

    x = torch.randn(1, 1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(score, (x, *network.parameters()), fast_mode=True)


@pytest.mark.parametrize(("base", "expected"), [(8, 38_192_316), (4, 9_557_124)])
def test_cascade_parameters(base: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(CascadedUNet(base=base)) == expected


def residual(x: torch.Tensor, state: State, *, name: str, groups: int = 1) -> torch.Tensor:
    """Pre-activation block: norm, rectification, convolution, twice; the sum."""
    y = x
    for i in (0, 3):
        norm, conv = (f"{name}.submodule.{i + k}" for k in (0, 2))
        mean, variance = y.mean((2, 3, 4), keepdim=True), y.var((2, 3, 4), keepdim=True, correction=0)
        scale, shift = (state[f"{norm}.{kind}"][:, None, None, None] for kind in ("weight", "bias"))
        y = functional.relu((y - mean) / (variance + 1e-3).sqrt() * scale + shift)
        y = functional.conv3d(y, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1, groups=groups)
    return x + y


def stage(x: torch.Tensor, state: State, *, name: str, extra: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """One network of the cascade; `extra` joins at that many halvings."""
    fused = []
    for level in range(4):
        key = f"{name}.encoder.{level}.0"
        x = functional.conv3d(
            x, state[f"{key}.weight"], state[f"{key}.bias"], stride=2 if level else 1, padding=1, groups=4
        )
        x = residual(x, state, name=f"{name}.encoder.{level}.{2 if level else 1}", groups=4)
        a, b, c, d = x.chunk(4, dim=1)
        fused.append(torch.maximum(torch.maximum(a, b), torch.maximum(c, d)))
    x = fused[3]
    for step, level in enumerate((2, 1, 0)):
        key = f"{name}.decoder.{step}"
        up = functional.conv_transpose3d(x, state[f"{key}.up.weight"], stride=2)
        joined = torch.cat([up, fused[level], *([extra[level]] if level in extra else [])], dim=1)
        x = functional.conv3d(joined, state[f"{key}.merge.weight"], state[f"{key}.merge.bias"])
        x = residual(x, state, name=f"{key}.block")
    return functional.conv3d(x, state[f"{name}.head.weight"], state[f"{name}.head.bias"])


def test_cascade_step_by_step() -> None:
    """From its description, in elementary operations."""
    network = randomised(CascadedUNet(base=1, dropout=0.0)).train()
    state, x = network.state_dict(), scan()
    coarse = stage(functional.avg_pool3d(x, 4), state, name="stages.0", extra={})
    middle = stage(functional.avg_pool3d(x, 2), state, name="stages.1", extra={1: coarse.softmax(1)})
    fine = stage(x, state, name="stages.2", extra={1: middle.softmax(1), 2: coarse.softmax(1)})
    with torch.no_grad():
        found = network(x)
        alone = network.eval()(x)
    assert [tuple(out.shape[2:]) for out in found] == [(32, 64, 32), (16, 32, 16), (8, 16, 8)]
    for ours, expected in zip(found, (fine, middle, coarse), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert torch.equal(alone, found[0])


def test_order_of_sequences_makes_no_difference() -> None:
    """Once the parameters of the encoders, a quarter each, are in the same order."""
    network, order = randomised(CascadedUNet(base=1)), [0, 2, 3, 1]
    other, state = CascadedUNet(base=1).eval(), network.state_dict()
    for name, value in state.items():
        if ".encoder." in name:
            state[name] = value.unflatten(0, (4, -1))[order].flatten(0, 1)
    other.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(other(scan()[:, order]), network(scan()), rtol=0, atol=1e-5)
        assert (network(scan()[:, order]) - network(scan())).abs().max() > 1e-3


def test_dropout_of_the_encoders() -> None:
    network = CascadedUNet(base=1, dropout=0.3)
    found = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert found == {f"stages.{i}.encoder.{level}.1": 0.3 for i in range(3) for level in (1, 2, 3)}
    assert {x.p for x in CascadedUNet(base=1).modules() if isinstance(x, nn.Dropout)} == {0.1}
    with torch.no_grad():
        assert not torch.equal(network(scan())[0], network(scan())[0])
        assert torch.equal(network.eval()(scan()), network(scan()))


def test_gradients_flow_down_the_cascade() -> None:
    """The loss of the finest network reaches all of them, that of the coarsest itself alone."""
    network, target = CascadedUNet(base=1), (scan()[:, :3] > 0.5).float()
    for weights, reached in (((1.0, 0.0, 0.0), [True, True, True]), ((0.0, 0.0, 1.0), [True, False, False])):
        network.zero_grad()
        CascadeLoss(weights)(network(scan()), target).backward()
        moved = [any(x.grad.any() for x in part.parameters() if x.grad is not None) for part in network.stages]
        assert moved == reached


def test_cascade_starts_xavier_uniform() -> None:
    kernels = 0
    for name, parameter in CascadedUNet(base=4).named_parameters():
        if parameter.ndim == 5:
            fans = parameter[0].numel() + parameter[:, 0].numel()
            bound = (6 / fans) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name
            kernels += 1
        else:
            is_scale = "submodule" in name and name.endswith(("0.weight", "3.weight"))
            expected = torch.full_like(parameter, is_scale)
            if name.endswith("head.bias"):
                expected[0] = 3  # all three networks start with background nearly everywhere
            assert torch.equal(parameter, expected), name
    assert kernels == 3 * (4 + 4 * 2 + 3 * 4 + 1)
