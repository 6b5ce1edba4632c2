"""Steps of cooperative training with the shipped configs against those of the reference implementation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cooperative_training.masking import LatentMasking
from cooperative_training.networks import CooperativeNetwork
from cooperative_training.training import CooperativeTraining, frozen_normalisation
from tests.bundles.cooperative_training.reference import (
    GOLDEN,
    assert_close,
    assert_digest,
    assert_statistics,
    config,
    golden_network,
    gradient_norms,
    norms,
    parameter_sums,
    parts,
    phantoms,
)

KINDS = ("dropout", "channel", "spatial")
STANDARD = ("seg", "image", "gt_shape", "shape")
HARD = ("hard_seg", "hard_image", "hard_shape_of_image", "hard_shape")
FAST = ("image_encoder", "segmentation_decoder", "image_decoder")
Losses = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def golden_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden steps got their noisy images, they drew no noise."""
    clean, _, noisy = phantoms()
    noise = (noisy - clean) / 0.05
    monkeypatch.setattr(torch, "randn_like", lambda image: noise[: len(image), :, -image.shape[2] :, -image.shape[3] :])


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002
    torch.manual_seed(value)


def masked_by(kind: str) -> dict[str, Sequence[str]]:
    return {"image_masking__kinds": [kind], "shape_masking__kinds": [kind]}


def corner(tensor: torch.Tensor) -> torch.Tensor:
    """Half of the batch, and of every slice the corner with the ventricles: enough for properties."""
    return tensor[:2, :, -64:, -64:]


def losses_of(cooperation: CooperativeTraining, *, whole: bool = False) -> Losses:
    losses: Losses = cooperation(*[tensor if whole else corner(tensor) for tensor in phantoms()[:2]])
    return losses


def hard_step(network: CooperativeNetwork, *, whole: bool = False, **kwargs: Any) -> Losses:
    """Losses of a step of which both codes are masked by channel, as in the golden one."""
    maskings = {name: LatentMasking(("channel",)) for name in ("image_masking", "shape_masking")}
    seed(21)
    return losses_of(CooperativeTraining(network, **maskings | kwargs), whole=whole)


def values(losses: Losses, names: Sequence[str]) -> list[float]:
    return [losses[name].item() for name in names]


def gradients(network: CooperativeNetwork) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_step(network: CooperativeNetwork, prefix: str) -> None:
    for name, part in parts(network):
        assert_close(parameter_sums(part), f"{prefix}/param_sum_after/{name}", rtol=1e-7)
    network.eval()
    with torch.no_grad():
        for refinements in 0, 1:
            if (key := f"{prefix}/pred_after_n{refinements + 1}") in GOLDEN:
                network.refinements = refinements
                assert_digest(network(phantoms()[0]), key, rtol=1e-6)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, hard examples, gradients, batch normalisation, parameters and predictions of one step."""
    network, key, corrupted = golden_network(), f"step/{kind}", list[torch.Tensor]()
    stems, masking = (["standard_training"], {}) if kind == "none" else ([], masked_by(kind))
    parser = config("reference", *stems, network=network, **masking)
    cooperation, optimizer = parser.get_parsed_content("cooperation"), parser.get_parsed_content("optimizer")
    assert optimizer.defaults["lr"] == 1e-4
    make = cooperation.hard_examples

    def recorded(*args: Any, **kwargs: Any) -> Any:
        corrupted.extend(made := make(*args, **kwargs))
        return made

    monkeypatch.setattr(cooperation, "hard_examples", recorded)
    seed(21)
    losses = losses_of(cooperation, whole=True)
    total = parser.get_parsed_content("loss")(losses, None)
    torch.autograd.backward(total)
    assert list(losses) == cooperation.names == list(STANDARD if kind == "none" else STANDARD + HARD)
    assert_close(values(losses, STANDARD), f"{key}/std(seg,image,gt_shape,shape)")
    assert_close(total.item(), f"{key}/total", rtol=1e-10)
    if kind != "none":
        assert_close(values(losses, HARD), f"{key}/hard(seg,image,shape_ftn,shape_code)")
        for example, name in zip(corrupted, ("hard_image", "hard_seg_logit"), strict=True):
            assert_digest(example, f"{key}/{name}")
    assert_close(gradient_norms(network), f"{key}/grad_norm[net,(conv,bn)]")
    assert_statistics(network, key)
    optimizer.step()
    assert_step(network, key)


@pytest.mark.gate
def test_three_steps() -> None:
    network = golden_network()
    optimizer = config(network=network, learning_rate=1e-3).get_parsed_content("optimizer")
    rows = []
    seed(22)
    for kind in "channel", "dropout", "spatial":
        losses = losses_of(config(network=network, **masked_by(kind)).get_parsed_content("cooperation"), whole=True)
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        optimizer.step()
        rows.append(values(losses, STANDARD + HARD))
    assert_close(rows, "multi/losses[step,(std4,hard4)]", rtol=1e-7)
    for name, part in parts(network):
        assert {int(layer.num_batches_tracked or 0) for layer in norms(part)} == set(GOLDEN[f"multi/bn_tracked/{name}"])
    assert_step(network, "multi")


def test_gradients_of_hard_examples() -> None:
    """All convolutions learn from them, batch normalisation in the image decoder alone."""
    network = golden_network()
    losses = hard_step(network, whole=True)
    torch.autograd.backward([losses[name] for name in HARD])
    assert_close(gradient_norms(network), "hard_only/grad_norm[net,(conv,bn)]")
    assert (gradient_norms(network)[:, 1] > 0).tolist() == [False, False, True, False, False]


def test_separate_training() -> None:
    """The slow-thinking network's loss does not reach the fast-thinking one, which otherwise learns from it."""
    network = golden_network()
    torch.autograd.backward(losses_of(CooperativeTraining(network, separate=True), whole=True)["shape"])
    assert_close(gradient_norms(network), "separate/grad_norm_of_shape_loss[net,(conv,bn)]")
    assert all(parameter.grad is None for name in FAST for parameter in network.get_submodule(name).parameters())
    network = golden_network()
    losses = hard_step(network, separate=True)
    torch.autograd.backward([losses["hard_shape_of_image"], losses["hard_shape"]])
    assert not gradient_norms(network)[:3].any()
    torch.autograd.backward(losses_of(CooperativeTraining(network))["shape"])
    assert (gradient_norms(network)[:2] > 0).all()


def test_without_maskings_it_is_standard_training() -> None:
    """The standard losses of a cooperative step and those of standard training, gradients included."""
    network, other = golden_network(), golden_network()
    cooperative, standard = hard_step(network), losses_of(CooperativeTraining(other))
    assert values(cooperative, STANDARD) == values(standard, STANDARD)
    torch.autograd.backward([cooperative[name] for name in STANDARD])
    torch.autograd.backward(list(standard.values()))
    torch.testing.assert_close(gradients(network), gradients(other), rtol=1e-12, atol=1e-15)


def test_one_backward_is_the_sum_of_two() -> None:
    """The two passes share no graph: hard examples are constants."""
    network, other = golden_network(), golden_network()
    torch.autograd.backward(sum(hard_step(network).values(), start=torch.zeros(())))
    losses = hard_step(other)
    for names in STANDARD, HARD:
        torch.autograd.backward([losses[name] for name in names])
    torch.testing.assert_close(gradients(network), gradients(other), rtol=1e-9, atol=1e-12)


def test_hard_examples_leave_no_gradients() -> None:
    network = golden_network()
    image, label, noisy = map(corner, phantoms())
    codes = network.encode(noisy)
    before = [parameter.requires_grad for parameter in network.parameters()]
    masking = LatentMasking(("spatial",))
    cooperation = CooperativeTraining(network, image_masking=masking, shape_masking=masking)
    examples = cooperation.hard_examples(codes, image=image, target=label[:, 0])
    assert all(example is not None and not example.requires_grad for example in examples)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == before


@pytest.mark.parametrize(("masked", "names"), [("image_masking", HARD[:3]), ("shape_masking", HARD[3:]), (None, ())])
def test_either_code_alone(masked: str | None, names: tuple[str, ...]) -> None:
    network = golden_network()
    maskings: dict[str, Any] = {masked: LatentMasking(("channel",))} if masked else {}
    cooperation = CooperativeTraining(network, **maskings)
    losses = losses_of(cooperation)
    assert list(losses) == cooperation.names == [*STANDARD, *names]
    torch.autograd.backward(list(losses.values()))
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("hard_normalisation", "counts"),
    [("reference", [1, 2, 3, 2, 2]), ("frozen", [1, 2, 2, 2, 2]), ("tracked", [2, 3, 3, 4, 4])],
)
def test_normalisation_of_the_hard_pass(hard_normalisation: str, counts: list[int]) -> None:
    """The maskings' own passes track in both decoders; see `hard_normalisation` for the others."""
    network = golden_network()
    hard_step(network, hard_normalisation=hard_normalisation)
    assert [{int(layer.num_batches_tracked or 0) for layer in norms(part)} for _, part in parts(network)] == [
        {count} for count in counts
    ]


def test_first_publication() -> None:
    """Noise is not clamped, and the slow-thinking network does not see the reference label maps."""
    network = golden_network(bounded=False, filter_bias=False)
    cooperation = config("reference_sep", network=network).get_parsed_content("cooperation")
    seen = list[torch.Tensor]()
    network.image_encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    losses = losses_of(cooperation)
    torch.testing.assert_close(seen[0], corner(phantoms()[2]))  # the golden noise is that of clamped images
    assert list(losses) == ["seg", "image", "shape", *HARD]
    cooperation.noise = 1.0
    losses_of(cooperation)
    assert seen[2].min() < -0.5
    assert CooperativeTraining(network).clamp


def test_frozen_normalisation_restores_what_was() -> None:
    network = golden_network()
    first, *others = norms(network)
    first.requires_grad_(False)  # by somebody else
    image = corner(phantoms()[0])
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}

    def fail() -> None:
        with frozen_normalisation(network):
            with frozen_normalisation(network):
                pass
            assert not any(parameter.requires_grad for layer in norms(network) for parameter in layer.parameters())
            network.encode(image)
            network.encode(image[..., 0])

    with pytest.raises(RuntimeError, match="expected"):
        fail()
    assert all(layer.track_running_stats for layer in norms(network))
    assert all(parameter.requires_grad for layer in others for parameter in layer.parameters())
    assert not any(parameter.requires_grad for parameter in first.parameters())
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)
    network.encode(image)
    assert first.num_batches_tracked == 1


def test_frozen_normalisation_uses_the_batch() -> None:
    network, image = golden_network(), corner(phantoms()[0])
    with frozen_normalisation(network):
        frozen = network.encode(image)
    for ours, tracked in zip(frozen, network.encode(image), strict=True):
        assert torch.equal(ours, tracked)
