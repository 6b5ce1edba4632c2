"""How the stages learn from scratch: schedules, averaged weights, augmentation; halves and mirror images."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from monai.transforms import Compose, Randomizable

from hadnet.networks import SegmentationNetwork
from hadnet.shared.convolutions import HalvedConv3d
from hadnet.uncertainty import MonteCarloDropout
from tests.bundles.hadnet.reference import config

SIZE = [32, 48, 32]
STAGES = [("train",), ("train", "pretrain")]
each_stage = pytest.mark.parametrize("stems", STAGES)


@each_stage
def test_learning_rates_fall_to_the_last_epoch_of_a_run(stems: tuple[str, ...]) -> None:
    """Of both optimizers; whoever sets the epochs of the trainer alone, as MONAI Label does, shortens the fall."""
    parser = config(*stems, filters=4, **{"train__trainer__max_epochs" if stems == ("train",) else "max_epochs": 4})
    schedules = [parser.get_parsed_content("lr_scheduler")]
    if stems == ("train",):
        schedules.append(parser.get_parsed_content("discriminator_lr_scheduler"))
    for schedule in schedules:
        (start,) = schedule.base_lrs
        rates = []
        for _ in range(6):
            rates.append(schedule.optimizer.param_groups[0]["lr"] / start)
            schedule.optimizer.step()
            schedule.step()
        assert rates == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.01**0.9, 0.01**0.9])


@pytest.mark.parametrize(("policy", "disabled"), [("polynomial", [False, True]), ("plateau", [True, False])])
def test_one_schedule_acts(policy: str, disabled: list[bool]) -> None:
    parser = config("train", "pretrain", lr_policy=policy)
    parser.parse()
    handlers = [parser.get_parsed_content(f"train::handlers::{index}::_disabled_") for index in (1, 3)]
    assert handlers == disabled
    assert parser.get_parsed_content("lr_factor")(3) == (
        1 if policy == "plateau" else pytest.approx((397 / 400) ** 0.9)
    )


@pytest.mark.parametrize("epochs", [10, 60, 400])
def test_classes_count_alike_from_half_of_the_epochs_on(epochs: int) -> None:
    parser = config("train", "pretrain", max_epochs=epochs)
    decay, largest = parser.get_parsed_content("class_weight_decay"), max(parser["class_weights"])
    assert largest * decay ** (epochs / 2) == pytest.approx(1)
    assert largest * decay ** (epochs / 2 - 1) > 1


@each_stage
def test_averaged_weights_are_validated_and_saved(stems: tuple[str, ...]) -> None:
    """Where training is over or as published it is the network itself, of which there is no second one."""
    ids = ("ema", "validate::evaluator", "best_model", "network")
    fixed: dict[str, Any] = {"filters": 4, "validate__dataloader": [0], "validate__handlers": []}
    parser = config(*stems, **fixed)
    ema, evaluator, best, network = (parser.get_parsed_content(name) for name in ids)
    assert evaluator.network is best.network is ema.ema_model is not network
    for overlay in ("evaluate", "reference"):
        parser = config(*stems, overlay, **fixed)
        assert parser.get_parsed_content("averaged") is parser.get_parsed_content("network")


def scan() -> dict[str, torch.Tensor]:
    """A brain of lines in all of four sequences, and the lines as label."""
    brain = torch.zeros(1, *SIZE, dtype=torch.uint8)
    brain[:, 6:-6, 8:-8, 6:-6] = 1
    label = brain * (torch.arange(SIZE[2]) // 4 % 2).to(torch.uint8)
    return {"image": (0.2 * brain + 0.6 * label).repeat(4, 1, 1, 1), "brain": brain, "label": label}


def augmented(draws: int, *, spatial: bool, stems: tuple[str, ...] = ("train",)) -> list[dict[str, torch.Tensor]]:
    transforms = config(*stems, size=SIZE).get_parsed_content("train::random_transforms")
    kept = [t for t in transforms if not (spatial and type(t).__name__ == "EachSequenced")]
    compose = Compose(kept).set_random_state(3)
    return [compose(scan()) for _ in range(draws)]


@each_stage
def test_sequences_and_label_move_together(stems: tuple[str, ...]) -> None:
    """So teacher and student, who see other channels of one image, see one head."""
    moved = 0
    for item in augmented(6, spatial=True, stems=stems):
        assert all(torch.equal(sequence, item["image"][0]) for sequence in item["image"])
        assert ((item["image"][0] > 0.5) == (item["label"][0] > 0)).float().mean() > 0.97
        moved += not torch.equal(item["brain"], scan()["brain"])
    assert 0 < moved < 6


def test_each_sequence_has_intensities_of_its_own() -> None:
    items = augmented(6, spatial=False)
    assert any(not torch.equal(item["image"][0], item["image"][1]) for item in items)
    for item in items:
        assert not item["image"][:, item["brain"][0] == 0].any()
        assert item["image"].isfinite().all()
    for one, again in zip(items, augmented(6, spatial=False), strict=True):
        assert torch.equal(one["image"], again["image"])


@each_stage
def test_validation_sees_scans_as_they_are(stems: tuple[str, ...]) -> None:
    parser = config(*stems)
    training, validation = (parser.get_parsed_content(f"{name}::preprocessing") for name in ("train", "validate"))
    assert any(isinstance(transform, Randomizable) for transform in training.transforms)
    assert not any(isinstance(transform, Randomizable) for transform in validation.transforms)


def test_reference_augments_pretraining_alone() -> None:
    kinds = {
        stems: [type(t).__name__ for t in config(*stems, "reference").get_parsed_content("train::random_transforms")]
        for stems in STAGES
    }
    published = ["RandFlipd", "EnsureTyped", "RandAffined", "MaskIntensityd"]
    assert list(kinds.values()) == [[], published]


def test_halves_of_volumes_change_nothing() -> None:
    """Logits and gradients in double precision, where rounding hides no error; some layers are halved, some not."""
    torch.manual_seed(0)
    network, x = SegmentationNetwork(3, filters=4, dropout=0).double(), torch.rand(1, 3, 32, 36, 32).double()
    found = list[list[torch.Tensor]]()
    for limit in (0, 4 * 16 * 18):
        copied = deepcopy(network)
        halved = patch.object(HalvedConv3d, "_in_halves", autospec=True, side_effect=HalvedConv3d._in_halves)
        with patch("hadnet.shared.convolutions.SMALL", limit), halved as seen:
            logits = copied(x)
            weights = torch.linspace(-1, 2, logits.numel()).view_as(logits)
            torch.autograd.backward((logits * weights).sum())
        assert bool(seen.call_count) == bool(limit)
        found.append([logits, *(parameter.grad for parameter in copied.parameters() if parameter.grad is not None)])
    assert len(found[0]) == 79
    torch.testing.assert_close(found[1], found[0])


class Slope(torch.nn.Module):
    """Logits that grow along the last axis for the third class, whatever the scan."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 4, *x.shape[2:])
        logits[:, 2] = torch.arange(x.shape[-1]).float() + x[:, 0]
        return logits


def test_mirror_images_are_averaged() -> None:
    """By hand along one axis; and over all axes a mirrored scan has the mirrored answer."""
    x = torch.rand(1, 1, 2, 3, 4)
    plain = MonteCarloDropout()(x, Slope())
    assert torch.equal(plain, Slope()(x))
    both = (Slope()(x).softmax(1) + Slope()(x.flip(4)).softmax(1).flip(4)) / 2
    torch.testing.assert_close(MonteCarloDropout(flips=[2])(x, Slope()).softmax(1), both)
    everywhere = MonteCarloDropout(flips=[0, 1, 2])
    assert len(everywhere.mirrored) == 8
    for axes in ([2], [3, 4], [2, 3, 4]):
        torch.testing.assert_close(everywhere(x.flip(axes), Slope()), everywhere(x, Slope()).flip(axes))
