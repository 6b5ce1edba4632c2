"""Student, losses, optimisation and score of lachinov_distillation_brats_mri against the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lachinov_distillation.losses import JointDice, RegionLoss, WeightedBCE
from lachinov_distillation.metrics import RegionDice
from lachinov_distillation.networks import ResUNet
from tests.bundles.lachinov_distillation.reference import (
    GOLDEN,
    Array,
    key_map,
    names,
    normal,
    reference_state,
    soft_regions,
    student,
    weight,
)

SIZES = {"a": (1, 4, 16, 16, 16), "b": (2, 4, 16, 24, 32), "c": (1, 4, 40, 32, 24)}
PAIR = (2, 3, 6, 8, 4)
KINDS = ("soft", "hard", "empty", "saturated", "perfect")
RATES = ("2e-05", "0.001")
each_kind = pytest.mark.parametrize("kind", KINDS)


def test_inventory() -> None:
    network = ResUNet()
    ours = list(network.parameters())
    assert (len(ours), sum(parameter.numel() for parameter in ours)) == (86, 4_509_939)
    assert not list(network.buffers())
    sizes = [np.prod(shape) for shape in names().values()]
    assert (len(sizes), sum(sizes)) == (93, 5_427_955)


def test_weights_convert_both_ways() -> None:
    """Bit by bit, but for the seven tensors that the reference never uses."""
    reference = reference_state()
    sums = [tensor.double().sum() for tensor in reference.values()]
    np.testing.assert_allclose(sums, GOLDEN["weight_sums"], rtol=0, atol=1e-12)
    converter = key_map(ResUNet())
    back = converter.to_reference(student().state_dict())
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == names()
    dead = {key for key, tensor in reference.items() if not torch.equal(back[key], tensor)}
    assert dead == set(converter.dropped) == set(GOLDEN["train_lr2e-05/grad_none"].tolist())
    assert sum(value.numel() for value in converter.dropped.values()) == 918_016


@pytest.mark.parametrize(("tag", "upsampling"), [*((tag, "trilinear") for tag in SIZES), ("a", "nearest")])
def test_forward(tag: str, upsampling: str) -> None:
    """Probabilities of every third voxel, and the means of all; logits differ by what rounding makes of them."""
    with torch.no_grad():
        found = student(upsampling)(normal(f"student/{tag}", SIZES[tag])).sigmoid()
    key = f"out/{tag}" if upsampling == "trilinear" else f"out/{tag}_nearest"
    step = 1 if key == "out/a" else 3
    np.testing.assert_allclose(found[..., ::step, ::step, ::step], GOLDEN[key], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.double().mean((0, 2, 3, 4)), GOLDEN[f"{key}/mean"], rtol=0, atol=1e-6)


def stages(network: ResUNet) -> dict[str, nn.Module]:
    """Our modules by the reference's names for what they return."""
    entry = network.get_submodule("encoder.0.0")
    found = {"conv_input": entry.get_submodule("conv"), "norm_input": entry, "conv_output": network.head}
    found |= {f"encoder_{level}": network.encoder[level + 1] for level in range(3)}
    found["conv_first"] = network.encoder[0]
    for level, join in enumerate(reversed(network.decoder)):
        found[f"upsampling_{level}"] = join.get_submodule("up.interpolation")
        found[f"decoder1x1_{level}"] = join.get_submodule("merge")
        found[f"decoder_{level}"] = join
    return found


def test_stages() -> None:
    """Shape, sum, sum of magnitudes and of squares of what every stage returns."""
    network, found = student(), dict[str, list[float]]()
    for name, module in stages(network).items():

        def note(_: nn.Module, __: object, out: torch.Tensor, name: str = name) -> None:
            value = out.double()
            found[name] = [*out.shape, float(value.sum()), float(value.abs().sum()), float(value.square().sum())]

        module.register_forward_hook(note)
    with torch.no_grad():
        network(normal("student/a", SIZES["a"]))
    expected = {key.removeprefix("feat/"): GOLDEN[key] for key in GOLDEN.files if key.startswith("feat/")}
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name][:5] == row[:5].tolist(), name
        assert found[name][6:] == pytest.approx(row[6:], rel=1e-6), name
        assert found[name][5] == pytest.approx(row[5], abs=1e-6 * row[6]), name


def block(module: nn.Module, prefix: str) -> nn.Module:
    """The module, filled with the golden weights of the reference's block of that name."""
    table = {"unit0.conv": "conv1.conv1", "unit1.conv": "conv2.conv1", "unit0.adn.N": "norm1", "unit1.adn.N": "norm2"}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            layer, _, kind = name.partition("conv.")[2].rpartition(".")
            key = f"{table[layer]}.{kind}" if layer else "downsample.0.weight"
            parameter.copy_(weight(f"{prefix}/{key}", tuple(parameter.shape)))
    return module


def test_residual_block() -> None:
    found = block(ResUNet().get_submodule("encoder.0.1"), "block/residual")(normal("block16", (2, 16, 6, 4, 8)))
    np.testing.assert_allclose(found.detach(), GOLDEN["block/residual"], rtol=0, atol=1e-5)


def test_block_that_halves() -> None:
    network = ResUNet(channels=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1,))
    found = block(network.encoder[1], "block/residual_down")(normal("block8", (2, 8, 8, 6, 4)))
    np.testing.assert_allclose(found.detach(), GOLDEN["block/residual_down"], rtol=0, atol=1e-5)


def test_interpolation() -> None:
    found = ResUNet().get_submodule("decoder.0.up.interpolation")(normal("block16", (2, 16, 6, 4, 8)))
    np.testing.assert_allclose(found[:, ::5], GOLDEN["block/trilinear2"], rtol=0, atol=1e-6)


def pair(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and target of a golden loss; stored, where the last bit of a sigmoid near 1 matters."""
    probabilities = torch.from_numpy(GOLDEN["loss/pred"])
    soft = soft_regions("loss", PAIR)
    hard = (soft > 0.6).float()
    saturated = (normal("loss/sat", PAIR) > 0).float()
    return {
        "soft": (probabilities, soft),
        "hard": (probabilities, hard),
        "empty": (probabilities, torch.zeros_like(hard)),
        "saturated": (saturated, hard),
        "perfect": (hard.clone(), hard),
    }[kind]


def gradient(name: str, kind: str) -> Array:
    return np.asarray(GOLDEN[f"loss/{name}/{kind}/grad"])


@each_kind
@pytest.mark.parametrize(("name", "loss"), [("dice_joint", JointDice()), ("bce_w001", WeightedBCE())])
def test_losses_and_gradients(name: str, loss: nn.Module, kind: str) -> None:
    probabilities, target = pair(kind)
    value = loss(probabilities.requires_grad_(), target)
    (found,) = torch.autograd.grad(value, probabilities)
    assert value.item() == pytest.approx(float(GOLDEN[f"loss/{name}/{kind}"]), rel=0, abs=1e-6)
    expected = gradient(name, kind)
    np.testing.assert_allclose(found, expected, rtol=0, atol=max(1e-6 * abs(expected).max(), 1e-12))


@pytest.mark.parametrize("kind", ["soft", "hard", "empty"])
def test_loss_of_logits(kind: str) -> None:
    """The mean of both losses; gradients go through the sigmoid."""
    logits, (probabilities, target) = 2 * normal("loss/pred", PAIR), pair(kind)
    value = RegionLoss()(logits.requires_grad_(), target)
    (found,) = torch.autograd.grad(value, logits)
    both = [float(GOLDEN[f"loss/{name}/{kind}"]) for name in ("dice_joint", "bce_w001")]
    assert value.item() == pytest.approx(sum(both) / 2, rel=0, abs=1e-6)
    slope = (probabilities * (1 - probabilities)).numpy()
    expected = (gradient("dice_joint", kind) + gradient("bce_w001", kind)) / 2 * slope
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * abs(expected).max())


def by_name(network: ResUNet, values: dict[str, float]) -> Array:
    """Values of our parameters in the reference's order, and 0 for its dead ones."""
    ours = {theirs: ours for ours, theirs in key_map(network).names.items()}
    return np.array([values[ours[key]] if key in ours else 0.0 for key in names()])


def moved(network: ResUNet, start: dict[str, torch.Tensor]) -> Array:
    now = network.state_dict()
    return by_name(network, {key: float((now[key].double() - start[key].double()).norm()) for key in start})


@pytest.mark.parametrize("rate", RATES)
def test_training_steps(rate: str) -> None:
    """Three steps: losses, gradients of the first, how far the first and all three move every parameter."""
    network, golden = student().train(), {key: GOLDEN[f"train_lr{rate}/{key}"] for key in STEP}
    start = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=float(rate), weight_decay=1e-6, amsgrad=True)
    loss, scan = RegionLoss(), normal("train", (2, 4, 16, 24, 32))
    target = soft_regions("train", (2, 3, 16, 24, 32))
    history = []
    for step in range(3):
        optimizer.zero_grad()
        logits = network(scan)
        value = loss(logits, target)
        value.backward()
        probabilities = logits.detach().sigmoid()
        history.append([*(float(part(probabilities, target)) for part in (loss.dice, loss.bce)), value.item()])
        if step == 0:
            grads = {key: float(x.grad.double().norm()) for key, x in network.named_parameters() if x.grad is not None}
            np.testing.assert_allclose(by_name(network, grads), golden["grad_l2_f64"], rtol=1e-3)
            assert np.linalg.norm([*grads.values()]) == pytest.approx(9.0899, abs=1e-3)
        optimizer.step()
        if step == 0:
            np.testing.assert_allclose(moved(network, start), golden["param_delta_l2_after1_f64"], rtol=1e-3)
            sums = by_name(network, {key: float(value.double().sum()) for key, value in network.state_dict().items()})
            alive = golden["grad_l2_f64"] > 0
            np.testing.assert_allclose(sums[alive], golden["param_sum_after1_f64"][alive], rtol=0, atol=2e-3)
    np.testing.assert_allclose(history, golden["loss_history"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(moved(network, start), golden["param_delta_l2_after3_f64"], rtol=1e-3)


STEP = ("grad_l2_f64", "param_delta_l2_after1_f64", "param_sum_after1_f64", "loss_history", "param_delta_l2_after3_f64")


def test_schedule() -> None:
    """Stepped once per iteration."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=2e-5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 16_000, gamma=0.5)
    rates = list[float]()
    for _ in range(48_001):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in GOLDEN["schedule/step"]] == pytest.approx(GOLDEN["schedule/lr"], rel=1e-12)


def test_initialisation() -> None:
    """Kaiming-normal for a slope of 0.01; the more numbers a kernel has, the nearer, as in the reference."""
    torch.manual_seed(0)
    network, ratios = ResUNet(), []
    for name, parameter in network.named_parameters():
        if parameter.ndim == 5:
            theory = (2 / (1 + 0.01**2) / parameter[0].numel()) ** 0.5
            ratios.append(float(parameter.detach().std()) / theory)
            assert ratios[-1] == pytest.approx(1, abs=5 / (2 * parameter.numel()) ** 0.5), name
            assert parameter.numel() < 1000 or parameter.abs().max() > 2.5 * theory, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight"))), name
    assert len(ratios) == len(GOLDEN["init/std_over_theory"]) - 3  # of the decoder that nothing uses
    assert GOLDEN["init/norm_weight_minmax"].tolist() == [1, 1]
    assert abs(np.mean(ratios) - np.mean(GOLDEN["init/std_over_theory"])) < 0.01


def test_score() -> None:
    prediction, target = (torch.from_numpy(GOLDEN[f"metric/dice_{name}"]) for name in ("pred", "gt"))
    expected = GOLDEN["metric/dice"]
    metrics = [RegionDice(region, threshold=0.5) for region in ("WT", "TC", "ET")]
    for metric in metrics:
        metric(prediction, target)
    assert [float(metric.aggregate()) for metric in metrics] == pytest.approx(expected, abs=1e-7)
    score = RegionDice()
    for case, truth in zip(prediction, target, strict=True):  # one by one, and as logits
        score([torch.logit(case.double())], [truth])
    assert float(score.aggregate()) == pytest.approx(expected.min() + expected.mean(), abs=1e-7)
