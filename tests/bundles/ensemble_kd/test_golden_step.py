"""Training steps of ensemble_kd_kits_ct with the shipped configs against those of the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import nn

from ensemble_kd.losses import DistillationLoss, HardLoss
from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from tests.bundles.ensemble_kd.reference import filled, order, without_dropout
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
CONFIGS = REPO / "bundles/ensemble_kd_kits_ct/configs"
RATE = 1e-3
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dil2D": lambda: DilatedCNN(3, 35),
    "Resnet3DNEW": lambda: ResNet(3, 3),
    "Unet3DSmallOrig": lambda: UNet(3, 3),
}


class Recipe(NamedTuple):
    """Overlays of train.yaml and overrides that make a run of the reference implementation."""

    stems: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float64


RECIPES = {
    "kd_adam": Recipe(),
    "kd_adam_wd": Recipe(overrides=(("optimizer::weight_decay", 1e-5),)),
    "dice_adam": Recipe(("train_member",), (("hard_loss", "dice"),)),
    "kd_sgd": Recipe(("sgd",)),
    "ce_adam_f32": Recipe(("train_member",), dtype=torch.float32),
}
RUNS = [("dil2D", recipe, steps) for recipe in RECIPES for steps in (1, 3)]
RUNS += [(network, "kd_adam", 1) for network in ("Resnet3DNEW", "Unet3DSmallOrig")]
each_run = pytest.mark.parametrize(("name", "recipe", "steps"), RUNS)


class Run(NamedTuple):
    """A finished run: its parser, network and the losses of its steps."""

    parser: ConfigParser
    network: nn.Module
    losses: list[float]


def batch(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What every step learns from: 4 patches of 45 x 45 pixels, or 2 cubes of 16 voxels."""
    patches, outputs, seed = ((4, 45, 45), (4, 11, 11), 21) if name == "dil2D" else ((2, 16, 16, 16),) * 2 + (22,)
    rng = np.random.RandomState(seed)
    image = torch.from_numpy(rng.randn(patches[0], 1, *patches[1:])).to(dtype)
    label = torch.from_numpy(rng.randint(0, 3, outputs))[:, None]
    soft = torch.from_numpy(2 * rng.randn(outputs[0], 3, *outputs[1:])).softmax(1).to(dtype)
    return {"image": image, "label": label, "soft": soft}


@cache
def trained(name: str, recipe: str, steps: int) -> Run:
    """Trains with `SupervisedTrainer` as train.yaml builds it; the clock of the learning rate is its only handler."""
    stems, overrides, dtype = RECIPES[recipe]
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{stem}.yaml") for stem in ("train", *stems)])
    network = without_dropout(filled(NETWORKS[name]()).to(dtype))
    parser.update({"device": torch.device("cpu"), "amp": False, "network": network, "hard_on": "probs"})
    parser.update({"max_epochs": 1, "epoch_length": steps, "train::dataloader": steps * [batch(name, dtype)]})
    parser.update({"train::handlers": [parser["train::handlers::0"]], "train::key_metric": None, **dict(overrides)})
    trainer, losses = parser.get_parsed_content("train::trainer"), list[float]()

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep() -> None:
        losses.append(float(trainer.state.output["loss"].detach()))

    trainer.run()
    return Run(parser, network, losses)


def places(network: nn.Module) -> dict[str, int]:
    """Where in the reference's list of parameters ours stand: it has those of auxiliary heads, too."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    theirs = [name for name in order(network) if not name.endswith(buffers)]
    return {name: theirs.index(name) for name, _ in network.named_parameters()}


def gradients(name: str, recipe: str, steps: int) -> dict[str, torch.Tensor]:
    """What the last step went by."""
    found = {key: value.grad for key, value in trained(name, recipe, steps).network.named_parameters()}
    return {key: value for key, value in found.items() if value is not None}


def idle(name: str, recipe: str, steps: int) -> list[str]:
    """Biases ahead of a batch normalisation: their gradient is rounding, of which Adam makes full steps."""
    found = gradients(name, recipe, steps)
    return [key for key, value in found.items() if key.endswith("bias") and value.abs().max() < 1e-12]


@each_run
def test_losses(name: str, recipe: str, steps: int) -> None:
    limit = 1e-8 if RECIPES[recipe].dtype == torch.float64 else 2e-6
    golden = GOLDEN[f"{name}.{recipe}.n{steps}.losses"]
    np.testing.assert_allclose(trained(name, recipe, steps).losses, golden, rtol=0, atol=limit)


@each_run
def test_parameters(name: str, recipe: str, steps: int) -> None:
    network, still = trained(name, recipe, steps).network, idle(name, recipe, steps)
    assert len(still) == {"dil2D": 0, "Resnet3DNEW": 11, "Unet3DSmallOrig": 14}[name]
    rows = {key: row for key, row in places(network).items() if key not in still}
    limit = 1e-6 if RECIPES[recipe].dtype == torch.float64 else 1e-3
    values = [network.get_parameter(key).detach().double() for key in rows]
    sums = {"param_sum": [v.sum() for v in values], "param_abs_sum": [v.abs().sum() for v in values]}
    for kind, found in sums.items():
        golden = GOLDEN[f"{name}.{recipe}.n{steps}.{kind}"][[*rows.values()]]
        np.testing.assert_allclose(found, golden, rtol=0, atol=limit, err_msg=kind)


def test_recipes_differ_by_more_than_the_tolerance() -> None:
    """Weight decay moves the third step's loss by 1e-4, plain SGD stays behind."""
    last = {recipe: GOLDEN[f"dil2D.{recipe}.n3.losses"][-1] for recipe in RECIPES}
    assert np.diff(sorted(last.values())).min() > 1e-4


def test_losses_and_optimizers_are_those_of_the_configs() -> None:
    kinds = {recipe: trained("dil2D", recipe, 3).parser.get_parsed_content("loss") for recipe in RECIPES}
    assert isinstance(kinds["kd_adam"], DistillationLoss)
    assert (kinds["kd_adam"].alpha, kinds["kd_adam"].soft, kinds["kd_adam"].hard.hard_on) == (0.1, "mse", "probs")
    assert isinstance(kinds["ce_adam_f32"], HardLoss)
    assert kinds["dice_adam"].kind == "dice"
    adam = trained("dil2D", "kd_adam", 3).parser.get_parsed_content("optimizer").param_groups[0]
    assert (adam["initial_lr"], adam["betas"], adam["eps"], adam["weight_decay"]) == (RATE, (0.9, 0.999), 1e-8, 0)


def test_gradients_of_a_step() -> None:
    found, rows = gradients("dil2D", "kd_adam", 1), places(trained("dil2D", "kd_adam", 1).network)
    assert list(found) == list(rows)
    norms, sums = [float(value.norm()) for value in found.values()], [float(value.sum()) for value in found.values()]
    np.testing.assert_allclose(norms, GOLDEN["dil2D.kd.grad_l2"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(sums, GOLDEN["dil2D.kd.grad_sum"], rtol=0, atol=1e-8)


def test_running_statistics_of_a_step() -> None:
    network = trained("dil2D", "kd_adam", 1).network
    first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert first.running_mean is not None
    assert first.running_var is not None
    np.testing.assert_allclose(first.running_mean, GOLDEN["dil2D.kd.bn1_running_mean"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(first.running_var, GOLDEN["dil2D.kd.bn1_running_var"], rtol=0, atol=1e-10)


def test_learning_rate_of_sgd() -> None:
    """0.1 for 3 % of the steps, 0.01 up to 10 %, then 0.001."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{stem}.yaml") for stem in ("train", "sgd")])
    parser.update({"network": nn.Linear(1, 1), "max_epochs": 4, "epoch_length": 50})
    optimizer, scheduler = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, GOLDEN["sgd_lr_200"], rtol=1e-12)
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("steps", [1, 3])
def test_clock_of_the_learning_rate_ticks_at_every_step(steps: int) -> None:
    """3 % and 10 % of so few steps are the start: SGD takes all of them at a hundredth of its rate."""
    parser = trained("dil2D", "kd_sgd", steps).parser
    scheduler = parser.get_parsed_content("lr_scheduler")
    assert scheduler.last_epoch == steps
    assert scheduler.get_last_lr() == pytest.approx([1e-3])
