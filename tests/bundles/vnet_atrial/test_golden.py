"""Networks, losses, schedules and optimiser steps of vnet_atrial_mri against those of the reference implementation."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.nn import functional

from tests.bundles.vnet_atrial.reference import BUNDLE, GOLDEN, config, ellipsoid
from tests.support.golden_rule import reference_state
from tools.convert import KeyMap, load_key_map
from vnet_atrial.losses import HybridLoss
from vnet_atrial.networks import VNet
from vnet_atrial.transforms import LevelSetd, level_set

TABLE: dict[str, dict[str, Any]] = json.loads(GOLDEN["net.table_json"].tobytes())
State = dict[str, torch.Tensor]


def swapped(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Batch with the order of its three spatial axes reversed: the reference's `(z, y, x)`, MONAI's `(x, y, z)`."""
    return torch.as_tensor(array).permute(0, 1, 4, 3, 2).contiguous()


@cache
def mapped(variant: str) -> tuple[KeyMap, State]:
    """Key map of a variant and its golden weights under our names."""
    key_map = load_key_map(BUNDLE, state=network(variant).state_dict())
    return key_map, key_map.to_ours(reference_state(TABLE[variant]["state_dict"]))


def network(variant: str) -> VNet:
    kwargs = TABLE[variant]["kwargs"]
    n = kwargs["num_layers"]
    return VNet(
        convs=(n, n, n + 1, n + 1),
        act="prelu" if kwargs.get("prelu", True) else "elu",
        dilation=kwargs.get("dilation", 1),
        attention=kwargs.get("attention_module", False),
    )


def weighted(variant: str) -> VNet:
    net = network(variant)
    net.load_state_dict(mapped(variant)[1])
    return net


def net_input(variant: str) -> torch.Tensor:
    seed, shape = (1002, (2, 1, 32, 32, 32)) if "attn" in variant else (1001, (1, 1, 32, 32, 48))
    return swapped(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def stages(net: VNet) -> list[nn.Module]:
    return [*net.encoder, *net.decoder, net.head]


@pytest.mark.parametrize("variant", TABLE)
def test_structure(variant: str) -> None:
    net, table = network(variant), TABLE[variant]
    key_map = mapped(variant)[0]
    theirs = key_map.to_reference(net.state_dict())
    assert {name: list(value.shape) for name, value in theirs.items()} == dict(table["state_dict"])
    dead = sum(value.numel() for value in key_map.dropped.values())
    assert dead == (0 if variant == "elu" else 240)
    assert sum(value.numel() for value in net.parameters()) + dead == table["trainable"]
    assert sum(value.numel() for value in net.buffers()) == table["buffers"]


@pytest.mark.parametrize("variant", TABLE)
def test_forward(variant: str) -> None:
    net, seen = weighted(variant).eval(), list[tuple[float, float]]()
    for stage in stages(net):
        stage.register_forward_hook(lambda _m, _i, out: seen.append((out.double().mean(), out.double().std())))
    with torch.no_grad():
        out = swapped(net(net_input(variant)))
    np.testing.assert_allclose(out[..., ::2, ::2, ::2], GOLDEN[f"net.{variant}.eval_out"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(seen, GOLDEN[f"net.{variant}.eval_stage_mean_std"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["attn", "dil2attn"])
def test_forward_in_training_mode(variant: str) -> None:
    net = weighted(variant).train()
    with torch.no_grad():
        out = swapped(net(net_input(variant)))
    np.testing.assert_allclose(out[..., ::2, ::2, ::2], GOLDEN[f"net.{variant}.train_out"], atol=5e-4, rtol=0)
    theirs = mapped(variant)[0].to_reference(net.state_dict())
    sums = [theirs[name].double().sum() for name, _ in TABLE[variant]["state_dict"] if "running" in name]
    np.testing.assert_allclose(sums, GOLDEN[f"net.{variant}.bn_after_train_fwd"], atol=1e-3, rtol=0)


def loss_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and level sets of the golden losses."""
    logits = 2 * np.random.RandomState(21).standard_normal((3, 1, 16, 24, 32))
    forms = [((8, 12, 16), (5, 8, 9)), ((6, 10, 12), (4, 5, 7)), ((3, 20, 30), (5, 6, 6))]
    labels = swapped(np.stack([ellipsoid((16, 24, 32), *form)[None] for form in forms]).astype(np.float32))
    level_sets = torch.stack([LevelSetd("label")({"label": label})["level_set"] for label in labels])
    return swapped(logits.astype(np.float32)), labels, level_sets


def test_level_sets() -> None:
    np.testing.assert_array_equal(swapped(loss_case()[2]), GOLDEN["loss.maps_int16"])
    for name in "border", "two", "single":
        golden = GOLDEN[f"dmap.{name}"][0]
        np.testing.assert_array_equal(level_set(golden <= 0).astype(np.int16), golden)


@pytest.mark.parametrize(("name", "share"), [("dice", 1.0), ("surface", 0.0)])
def test_losses_and_gradients(name: str, share: float) -> None:
    logits, labels, level_sets = loss_case()
    loss: HybridLoss = config("train", "reference", hybrid=True).get_parsed_content("loss")
    loss.set_region_weight(share)
    value = loss(logits.requires_grad_(), torch.cat([labels, level_sets], dim=1))
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(float(GOLDEN[f"loss.{name}"][0]), rel=1e-6)
    assert logits.grad is not None
    np.testing.assert_allclose(swapped(logits.grad)[..., ::2, ::2, ::2], GOLDEN[f"loss.{name}_grad"], rtol=1e-5)


def test_hybrid_loss_mixes_dice_and_boundary() -> None:
    logits, labels, level_sets = loss_case()
    loss: HybridLoss = config("train", "reference", hybrid=True).get_parsed_content("loss")
    for share, (_, golden) in zip(GOLDEN["loss.hybrid_alpha"], GOLDEN["loss.hybrid"], strict=True):
        loss.set_region_weight(share)
        assert loss(logits, torch.cat([labels, level_sets], dim=1)).item() == pytest.approx(golden, rel=1e-6)


def test_dice_loss_without_a_switch() -> None:
    logits, labels, _ = loss_case()
    loss = config("train", "reference").get_parsed_content("loss")
    assert loss(logits, labels).item() == pytest.approx(float(GOLDEN["loss.dice"][0]), rel=1e-6)
    assert loss(torch.full_like(logits, -100.0), labels).item() == GOLDEN["loss.dice_all_background"][0] == 1


def test_share_of_the_dice_loss_falls_by_epoch() -> None:
    parser = config("train", "reference", hybrid=True)
    loss, handler, shares = parser.get_parsed_content("loss"), parser.get_parsed_content("train::handlers::0"), []
    engine = Engine(lambda _engine, _batch: shares.append(loss.region_weight))
    handler.attach(engine)
    engine.run([0], max_epochs=len(GOLDEN["loss.alpha_schedule"]))
    np.testing.assert_allclose(shares, GOLDEN["loss.alpha_schedule"], atol=1e-9)


@pytest.mark.parametrize(("stem", "name"), [("reference", "seg"), ("reference_locator", "loc")])
def test_learning_rate_falls_on_plateaus(stem: str, name: str) -> None:
    parser = config("train", stem, network=nn.Linear(1, 1), locate=False, cases=None)
    parser["validate::handlers"] = parser["validate::handlers"][-1:]
    optimizer = parser.get_parsed_content("optimizer")
    (handler,) = parser.get_parsed_content("validate::handlers")
    validator = Engine(lambda _engine, _batch: None)
    handler.attach(validator)
    rates = []
    for value in GOLDEN["sched.losses"]:
        validator.state.metrics["val_dice_loss"] = float(value)
        validator.run([0])
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == GOLDEN[f"sched.{name}_lr"].tolist()


class Restated:
    """The reference network (one convolution per stage, PReLU, dilation 1) as functions of its own state dict."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, x: torch.Tensor, name: str, **kwargs: Any) -> torch.Tensor:
        return functional.conv3d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **kwargs)

    def prelu(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.prelu(x, self.state[f"{name}.weight"])

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale, shift = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.batch_norm(x, None, None, scale, shift, training=True).relu()

    def ops(self, x: torch.Tensor, stage: str, count: int) -> torch.Tensor:
        for i in range(count):
            x = self.prelu(self.conv(x, f"{stage}.ops.{i}.conv1", padding=2), f"{stage}.ops.{i}.relu1")
        return x

    def attend(self, x: torch.Tensor, stage: str) -> torch.Tensor:
        gate = f"{stage}.att_module.channel_att.channel_gate"
        if f"{gate}.1.weight" not in self.state:
            return x
        (w1, b1), (w4, b4) = ((self.state[f"{gate}.{i}.weight"], self.state[f"{gate}.{i}.bias"]) for i in (1, 4))
        hidden = self.norm(functional.linear(x.mean((2, 3, 4)), w1, b1), f"{gate}.2")
        u = x * (1 + functional.linear(hidden, w4, b4).sigmoid()[..., None, None, None])
        gate = f"{stage}.att_module.spatial_att.spatial_gate"
        s = self.norm(self.conv(u, f"{gate}.0"), f"{gate}.1")
        for i in (3, 6):
            s = self.norm(self.conv(s, f"{gate}.{i}", padding=4, dilation=4), f"{gate}.{i + 1}")
        return x + u + u * self.conv(s, f"{gate}.9").sigmoid()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        stage = "input_transition"
        skips = [self.attend(self.prelu(self.conv(x, f"{stage}.conv1", padding=2), f"{stage}.relu1"), stage) + x]
        for width, count in ((16, 1), (32, 1), (64, 2), (128, 2)):
            stage = f"down_transition{width}"
            q = self.prelu(self.conv(skips[-1], f"{stage}.down_conv", stride=2), f"{stage}.relu1")
            skips.append(self.attend(self.ops(q, stage, count), stage) + q)
        y = skips.pop()
        for width, count in ((128, 2), (64, 2), (32, 1), (16, 1)):
            stage = f"up_transition{width}"
            weight, bias = self.state[f"{stage}.up_conv.weight"], self.state[f"{stage}.up_conv.bias"]
            y = self.prelu(functional.conv_transpose3d(y, weight, bias, stride=2), f"{stage}.relu1")
            y = torch.cat([y, skips.pop()], dim=1)
            y = self.ops(y, stage, count) + y
        return self.prelu(self.conv(y, "out_transition.conv1"), "out_transition.relu1")


def three_steps(forward: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> list[float]:
    """Losses of three steps of Adam."""
    optimizer, losses = torch.optim.Adam(parameters, lr=3e-4), []
    for _ in range(3):
        loss = forward()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("variant", "share"), [("base", 1.0), ("attn", 0.7)])
def test_three_steps_of_adam(variant: str, share: float) -> None:
    """Forward, backward and loss together equal the reference's, restated."""
    image = torch.from_numpy(np.random.RandomState(7).standard_normal((2, 1, 16, 32, 16)).astype(np.float32))
    label = torch.from_numpy(np.stack([ellipsoid((16, 32, 16), c, (4, 9, 5))[None] for c in ((8, 14, 7), (6, 20, 9))]))
    phi = torch.stack([LevelSetd("label")({"label": mask})["level_set"] for mask in label])

    def their_loss() -> torch.Tensor:
        p = restated(image).sigmoid()
        dice = 1 - 2 * p[label].sum() / (p.sum() + label.sum())
        return share * dice + (1 - share) * (p * phi).mean()

    theirs = reference_state(TABLE[variant]["state_dict"])
    state = {name: value.requires_grad_() for name, value in theirs.items() if value.is_floating_point()}
    restated = Restated(state)
    used = [value for name, value in state.items() if "running" not in name and "relu2" not in name]

    loss: HybridLoss = config("train", "reference", hybrid=True).get_parsed_content("loss")
    loss.set_region_weight(share)
    net = weighted(variant).train()
    target = torch.cat([swapped(label), swapped(phi)], dim=1).float()
    ours = three_steps(lambda: loss(net(swapped(image)), target), list(net.parameters()))
    assert ours == pytest.approx(three_steps(their_loss, used), rel=1e-5)
    assert ours[0] > ours[1] > ours[2]
