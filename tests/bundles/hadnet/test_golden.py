"""Networks, losses, schedule and selection of hadnet_brats_mri against those of the reference implementation."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.nn import functional

from hadnet.losses import least_squares
from hadnet.metrics import SmoothedDice, smoothed_dice
from hadnet.networks import Discriminator, Pair, SegmentationNetwork, WithFeatures
from tests.bundles.hadnet.reference import (
    GOLDEN,
    SIZES,
    STUDENT,
    config,
    discriminator,
    image,
    key_map,
    label,
    names,
    reference_state,
    segmentation,
    statistics,
    uniform,
    whole_convolutions,
)

whole = pytest.fixture(whole_convolutions, scope="module", autouse=True)

ROLES = ("teacher", "student", "discriminator")
NETS = ROLES[:2]
REGIONS = ("ET", "WT", "TC")  # the last columns of the reference's Dice, after NET and ED
each_forward = pytest.mark.parametrize(("role", "tag"), [(role, tag) for role in NETS for tag in SIZES])


def built(role: str, filters: int) -> nn.Module:
    if role == "discriminator":
        return Discriminator(7, filters=filters)
    return SegmentationNetwork(4 if role == "teacher" else 3, filters=filters)


@cache
def forward(role: str, tag: str) -> tuple[torch.Tensor, list[Pair]]:
    """Logits and features in evaluation, where dropout makes no difference."""
    scan = image(tag)
    with torch.no_grad():
        return segmentation(role, dropout=0.2).eval().features(scan if role == "teacher" else scan[:, STUDENT])


@cache
def verdict(role: str, tag: str) -> torch.Tensor:
    logits, pairs = forward(role, tag)
    with torch.no_grad():
        return discriminator()(logits, image(tag)[:, STUDENT], pairs=pairs)


@pytest.mark.parametrize(("row", "filters"), enumerate((8, 16, 32)))
def test_parameter_counts(row: int, filters: int) -> None:
    with torch.device("meta"):
        networks = [built(role, filters) for role in ROLES]
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == GOLDEN["counts"][row].tolist()
    assert not any(list(network.buffers()) for network in networks)


@pytest.mark.parametrize(("role", "tensors"), zip(ROLES, (78, 78, 9), strict=True))
def test_weights_convert_both_ways(role: str, tensors: int) -> None:
    """Bit by bit, and with nothing left over on either side."""
    network, reference = built(role, 8), reference_state(role)
    converter = key_map(role, network)
    ours = converter.to_ours(reference)
    network.load_state_dict(ours, strict=True)
    back = converter.to_reference(network.state_dict())
    assert len(ours) == len(back) == len(names(role)) == tensors
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == names(role)
    assert all(torch.equal(back[key], tensor) for key, tensor in reference.items())


@pytest.mark.parametrize("role", NETS)
@pytest.mark.parametrize("filters", [8, 4])
def test_dropout_of_every_block(role: str, filters: int) -> None:
    """The input has none, where the reference's has it with as few filters as sequences."""
    network = built(role, filters)
    found = [module.p for module in network.modules() if isinstance(module, nn.Dropout3d)]
    assert not [module for module in network.modules() if type(module) in (nn.Dropout, nn.Dropout1d, nn.Dropout2d)]
    reference = GOLDEN[f"dropout_p_k{filters}"].tolist()
    assert reference[0] == (0 if filters == 8 else 0.2)
    assert found == [0, *reference[1:]] == [0, *8 * [0.2]]


@each_forward
def test_forward(role: str, tag: str) -> None:
    """Logits of every third voxel, and statistics of all and of the features."""
    logits, pairs = forward(role, tag)
    key = f"fwd/{role}/{tag}"
    np.testing.assert_allclose(logits[..., ::3, ::3, ::3], GOLDEN[f"{key}/logits"], rtol=0, atol=1e-5)
    found = {"logits_statistics": logits}
    assert len(pairs) == 3
    for i, pair in enumerate(pairs):
        for j, feature in enumerate(pair):
            assert list(feature.shape) == GOLDEN[f"{key}/feat{i}{j}_shape"].tolist()
            found[f"feat{i}{j}"] = feature
    for name, tensor in found.items():
        expected = GOLDEN[f"{key}/{name}"]
        np.testing.assert_allclose(statistics(tensor)[3:], expected[3:], rtol=0, atol=1e-5)
        np.testing.assert_allclose(statistics(tensor)[:3], expected[:3], rtol=1e-6)


def test_features_are_by_the_way() -> None:
    network, scan = segmentation("student").eval(), image("odd")[:, STUDENT]
    logits, pairs = forward("student", "odd")
    with torch.no_grad():
        assert torch.equal(network(scan), logits)
        again, features = WithFeatures(network)(scan)
    assert torch.equal(again, logits)
    assert all(
        torch.equal(a, b) for one, two in zip(features, pairs, strict=True) for a, b in zip(one, two, strict=True)
    )


@each_forward
def test_discriminator(role: str, tag: str) -> None:
    """To 1e-5: 0.0 with the instruction set of the golden file's machine, AVX2, 8e-6 with AVX-512."""
    expected = GOLDEN[f"disc/{role}/{tag}/patch"]
    assert verdict(role, tag).shape == expected.shape
    np.testing.assert_allclose(verdict(role, tag), expected, rtol=0, atol=1e-5)


def swapped(pairs: list[Pair]) -> list[Pair]:
    return [(functional.interpolate(deep, size=shallow.shape[2:]), shallow) for shallow, deep in pairs]


@each_forward
def test_discriminator_sees_logits_and_the_encoder_first(role: str, tag: str) -> None:
    (logits, pairs), scan, judge = forward(role, tag), image(tag), discriminator()
    expected = GOLDEN[f"disc/{role}/{tag}/patch"]
    with torch.no_grad():
        mistakes = {
            "swapped": judge(logits, scan[:, STUDENT], pairs=swapped(pairs)),
            "softmax": judge(logits.softmax(1), scan[:, STUDENT], pairs=pairs),
            "other sequences": judge(logits, scan[:, [0, 1, 2]], pairs=pairs),
            "scan first": judge(scan[:, STUDENT], logits, pairs=pairs),
        }
        with pytest.raises(RuntimeError, match="to have 7 channels, but got 8"):
            judge(logits, scan, pairs=pairs)
    assert all(abs(patch.numpy() - expected).max() > 0.01 for patch in mistakes.values())


def test_losses() -> None:
    """To 1e-6, but those of the discriminator's patches to 5e-6: see there."""
    parser = config("train")
    logits, real, fake = forward("student", "step")[0], verdict("teacher", "step"), verdict("student", "step")
    segmented, adversarial = parser.get_parsed_content("loss")(logits, label("step")), least_squares(fake, 1)
    judged = least_squares(real, 1), least_squares(fake, 0)
    exact = {"vox": segmented, "student_total": segmented + parser["adversarial_weight"] * adversarial}
    near = {"gan": adversarial, "disc_real": judged[0], "disc_fake": judged[1], "disc_total": sum(judged)}
    for tolerance, losses in ((1e-6, exact), (5e-6, near)):
        for name, loss in losses.items():
            assert float(loss) == pytest.approx(float(GOLDEN[f"loss/{name}"]), rel=tolerance), name
    accuracies = [float((real >= 0.5).float().mean()), float((fake <= 0.5).float().mean())]
    assert accuracies == [GOLDEN["loss/acc_real"], GOLDEN["loss/acc_fake"]]
    assert parser.get_parsed_content("loss").weight.tolist() == GOLDEN["loss/ce_weight"].tolist()


SETTINGS = [
    ("epochs", "max_epochs"),
    ("batch_size", "batch_size"),
    ("init_num_filters", "filters"),
    ("dropout_prob", "dropout"),
]
DISTILLATION = [*SETTINGS, ("lambda_const", "adversarial_weight"), ("disc_threshold", "threshold")]
PRETRAINING = [
    *SETTINGS,
    ("weight_decay_factor", "class_weight_decay"),
    ("augmentation_flipprob", "reference_augmentation::0::prob"),
    ("augmentation_affineprob", "reference_augmentation::2::prob"),
    ("lr_scheduler_factor", "plateau::factor"),
    ("lr_scheduler_patience", "plateau::patience"),
]


@pytest.mark.parametrize(
    ("stems", "reference", "settings"),
    [
        (["train", "reference"], "defaults", DISTILLATION),
        (["train", "pretrain", "reference"], "defaults_pretrain", PRETRAINING),
    ],
)
def test_settings(stems: list[str], reference: str, settings: list[tuple[str, str]]) -> None:
    given, parser = json.loads(str(GOLDEN[f"loss/{reference}"])), config(*stems)
    assert [parser.get_parsed_content(key) for _, key in settings] == [given[name] for name, _ in settings]
    optimizer = config(*stems, filters=4).get_parsed_content("optimizer")
    rate = given.get("gen_lr") or given["learning_rate"]
    assert optimizer.defaults["lr"] == config(*stems).get_parsed_content("learning_rate") == rate
    assert optimizer.defaults["betas"] == (given["beta_1"], given["beta_2"])
    assert optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["weight_decay"] == given.get("weight_decay", 0)
    assert type(optimizer) is (torch.optim.AdamW if "weight_decay" in given else torch.optim.Adam)


def test_class_weights_of_all_epochs() -> None:
    """The reference multiplies in single precision, over and over."""
    parser = config("train", "pretrain", "reference")
    loss, handler = parser.get_parsed_content("loss_on_device"), parser.get_parsed_content("train::handlers::0")
    found = list[torch.Tensor]()
    trainer = Engine(lambda engine, batch: found.append(loss.weight.clone()))
    handler.attach(trainer)
    trainer.run([None], max_epochs=parser["max_epochs"])
    np.testing.assert_allclose(torch.stack(found), GOLDEN["pretrain/ce_weight_by_epoch"], rtol=1e-5)
    reached = [next(epoch for epoch, weights in enumerate(found) if weights[index] == 1) for index in range(4)]
    assert reached == [0, 203, 156, 212]
    assert all((weights == 1).all() for weights in found[212:])


@pytest.mark.parametrize("role", NETS)
def test_initialisation(role: str) -> None:
    """Kaiming-normal, each half of a join by its own inputs."""
    torch.manual_seed(0)
    network, kernels = built(role, 32), 0
    for name, parameter in network.named_parameters():
        if parameter.ndim == 5 and parameter.numel() >= 1000:
            expected = (2 / parameter[0].numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert parameter.abs().max() > 3 * expected  # a uniform distribution ends at 1.7
            kernels += 1
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("adn.N.weight"))), name
    assert kernels == 22


def test_discriminator_starts_as_torch_has_it() -> None:
    """Uniform, of a standard deviation of 1 / sqrt(3 fan-in): no Kaiming-normal initialisation as in the others."""
    torch.manual_seed(0)
    for name, parameter in Discriminator(7, filters=8).named_parameters():
        if name.endswith("weight"):
            bound = parameter[0].numel() ** -0.5
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name
            assert parameter.abs().max() <= bound


def label_maps(pair: str) -> list[torch.Tensor]:
    """Two maps of classes: random ones, nothing, or the random ones without class 3."""
    classes = [torch.from_numpy(np.digitize(uniform(f"dice/{x}", (1, 12, 12, 12)), [0.6, 0.75, 0.9])) for x in "ab"]
    made = {"a": classes[0], "b": classes[1], "-": torch.zeros_like(classes[0])}
    made |= {name.upper(): torch.where(made[name] == 3, 0, made[name]) for name in "ab"}
    return [made[name] for name in pair]


@pytest.mark.parametrize(("row", "pair"), enumerate(["ab", "aa", "--", "a-", "-b", "AB"]))
def test_smoothed_dice(row: int, pair: str) -> None:
    found, true = label_maps(pair)
    expected = dict(zip(("NET", "ED", *REGIONS), GOLDEN["dice/values"][row], strict=True))
    for index, name in ((1, "NET"), (2, "ED"), (3, "ET")):
        assert float(smoothed_dice(found == index, true == index)) == pytest.approx(expected[name], abs=1e-6)
    logits = functional.one_hot(found, 4).movedim(-1, 1).float()
    for regions in (["ET"], ["TC"], ["WT"], [*REGIONS]):
        metric = SmoothedDice(regions)
        metric(logits, true[None])
        mean = np.mean([expected[name] for name in regions])
        assert float(metric.aggregate()) == pytest.approx(mean, abs=1e-6), regions


def test_validation_and_selection(tmp_path: Path) -> None:
    """Three validations of the student; of the weights that are as good the last ones stay."""
    network, best = segmentation("student"), tmp_path / "best.pt"
    bias = network.get_parameter("head.bias")
    item = {"image": image("step")[:, STUDENT], "label": label("step")}
    parser = config("train", "reference", network=network, weights=str(best), validate__dataloader=[item])
    parser["validate::handlers"] = ["@best_model"]
    evaluator = parser.get_parsed_content("validate::evaluator")
    for shift, row in enumerate(GOLDEN["valid/rows"]):
        expected = dict(zip(json.loads(str(GOLDEN["valid/columns"])), row, strict=True))
        with torch.no_grad():
            bias.add_(shift)  # of all classes alike: changes nothing but the weights
        evaluator.run()
        found = evaluator.state.metrics
        assert found["val_dice"] == pytest.approx(expected["vm"], abs=1e-6)
        assert [found[f"val_dice_{name}"] for name in REGIONS] == pytest.approx([expected[name] for name in REGIONS])
        assert torch.equal(torch.load(best)["head.bias"], bias)
