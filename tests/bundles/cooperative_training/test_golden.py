"""Networks and masks of cooperative_training_acdc_mri against those of the reference implementation."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cooperative_training.masking import LatentMasking, channel_mask, code_gradient, spatial_mask
from cooperative_training.networks import CooperativeNetwork
from tests.bundles.cooperative_training.reference import (
    BUNDLE,
    GOLDEN,
    NETS,
    assert_close,
    assert_digest,
    assert_statistics,
    golden_network,
    norms,
    parts,
    phantoms,
)
from tools.convert import load_key_map

LOSSES = {"image/mse": 0, "shape/ce": 1, "shape/corr": 1}  # what ranks, and which of the two codes it masks
MASKS = {"channel": channel_mask, "spatial": spatial_mask}


def one_hot() -> torch.Tensor:
    return functional.one_hot(phantoms()[1][:, 0], 4).movedim(-1, 1).double()


def spread(kernel: torch.Tensor) -> float:
    """Standard deviation times the root of the inputs of an output."""
    return kernel.std().item() * float(np.prod(kernel.shape[1:])) ** 0.5


@pytest.mark.parametrize("name", NETS)
def test_structure(name: str) -> None:
    part = golden_network().get_submodule(name)
    state = part.state_dict()
    named_shapes = [f"{key}|{'x'.join(map(str, tensor.shape))}" for key, tensor in state.items()]
    assert named_shapes == GOLDEN[f"keys/{name}"].tolist()
    assert sum(parameter.numel() for parameter in part.parameters()) == GOLDEN["count/params"][NETS.index(name)]
    assert_close([tensor.double().sum() for tensor in state.values()], f"fill/sum/{name}", rtol=1e-14)


def test_filter_without_bias_has_256_parameters_less() -> None:
    count = sum(parameter.numel() for parameter in CooperativeNetwork(filter_bias=False).image_encoder.parameters())
    assert count == GOLDEN["count/params"][0] - 2 * 128 == 1_125_632


@pytest.mark.parametrize("name", NETS)
def test_initialisation(name: str) -> None:
    torch.manual_seed(0)
    part = CooperativeNetwork().get_submodule(name)
    kernels = [module.weight.detach() for module in part.modules() if isinstance(module, nn.Conv2d)]
    for kernel, golden in zip(kernels, GOLDEN[f"init/std_sqrt_fanin/{name}"], strict=True):
        if kernel.numel() > 1000:
            assert spread(kernel) == pytest.approx(golden, rel=0.1)
    for module in part.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert spread(module.weight.detach()) == pytest.approx(3**-0.5, rel=0.1)  # torch's default, uniform
    for layer in norms(part):
        assert layer.bias.count_nonzero() == 0
    weights = torch.cat([layer.weight.detach() for layer in norms(part)])
    assert weights.mean().item() == pytest.approx(1, abs=0.01)
    assert weights.std().item() == pytest.approx(0.02, rel=0.2)
    if "final_conv.bias" in dict(part.named_parameters()):
        assert part.get_parameter("final_conv.bias").count_nonzero() == 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(mode: str) -> None:
    network, (image, _, _) = golden_network().train(mode == "train"), phantoms()
    with torch.no_grad():
        image_code, shape_code = network.encode(image)
        logits = network.segmentation_decoder(shape_code)
        maps = {"z_i": image_code, "z_s": shape_code, "seg_logit": logits}
        maps["image_recon"] = network.image_decoder(image_code)
        for suffix, labels in ("", torch.softmax(logits / 2, 1)), ("_gt", one_hot()):
            maps[f"shape_code{suffix}"] = network.shape_encoder(labels)
            maps[f"stn_logit{suffix}"] = network.shape_decoder(maps[f"shape_code{suffix}"])
    for key, value in maps.items():
        assert_digest(value, f"fwd_{mode}/{key}")
    assert_statistics(network, f"fwd_{mode}")
    for name, part in parts(network):
        sums = [layer.running_var.sum().item() for layer in norms(part) if layer.running_var is not None]
        assert_close(sums, f"fwd_{mode}/bn_var_sum/{name}")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("image_decoder.up1", "image_decoder.up1"),
        ("segmentation_decoder.up1", "segmentation_decoder.up1"),
        ("image_encoder.code_decoupler", "image_encoder.code_decoupler"),
        ("image_encoder.down4", "image_encoder.general_encoder.down4"),
    ],
)
def test_blocks(key: str, path: str) -> None:
    code = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 128, 6, 6)))
    with torch.no_grad():
        assert_digest(golden_network().eval().get_submodule(path)(code), f"block/{key}")


def test_linear_reconstruction_is_that_before_the_sigmoid() -> None:
    image = phantoms()[0][:1]
    with torch.no_grad():
        bounded, linear = (
            net.image_decoder(net.encode(image)[0]) for net in (golden_network(), golden_network(bounded=False))
        )
    torch.testing.assert_close(linear.sigmoid(), bounded, rtol=0, atol=1e-15)
    assert linear.min() < 0


@pytest.mark.parametrize(("code", "name"), [("plain", "w_o_filter"), ("shared", "share_code")])
def test_ablations(code: str, name: str) -> None:
    network = golden_network(code=code).eval()
    with torch.no_grad():
        sums = [code.sum() for code in network.encode(phantoms()[0])]
    assert_close(sums, f"variant/FCN_16_standard_{name}/code_sums(z_i,z_s)")
    assert sums[0] == sums[1]


@pytest.mark.parametrize("refinements", [0, 1, 2])
def test_prediction(refinements: int) -> None:
    network, key = golden_network(refinements=refinements).eval(), f"predict/n{refinements + 1}"
    with torch.no_grad():
        logits = network(phantoms()[0])
    assert_digest(logits, key)
    assert logits.argmax(1).flatten().bincount(minlength=4).tolist() == GOLDEN[f"{key}/argmax_hist"].tolist()


def test_without_refinement_the_fast_network_answers_alone() -> None:
    network, image = golden_network(refinements=0).eval(), phantoms()[0]
    with torch.no_grad():
        fast = network(image)
        assert torch.equal(fast, network.segmentation_decoder(network.encode(image)[1]))
        network.refinements = 2
        assert torch.equal(network(image), network.refine(network.refine(fast)))


def converted(state: dict[str, torch.Tensor], role: str) -> CooperativeNetwork:
    network = CooperativeNetwork(filter_bias=role == "cooperative").double().eval()
    network.load_state_dict(load_key_map(BUNDLE, role).to_ours(state))
    return network


def test_converted_network_is_the_reference_on_its_axes_and_classes() -> None:
    """The reference's images are (y, x) and its classes LV, MYO, RV; ours (x, y) and RV, MYO, LV."""
    reference, image = golden_network().eval(), phantoms()[0]
    ours = converted(reference.state_dict(), "cooperative")
    with torch.no_grad():
        logits, reconstruction = reference(image), reference.image_decoder(reference.encode(image)[0])
        ours_logits, ours_reconstruction = ours(image.mT), ours.image_decoder(ours.encode(image.mT)[0])
    torch.testing.assert_close(ours_logits.mT[:, [0, 3, 2, 1]], logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours_reconstruction.mT, reconstruction, rtol=0, atol=1e-12)
    back = load_key_map(BUNDLE).to_reference(ours.state_dict())
    assert all(torch.equal(back[key], value) for key, value in reference.state_dict().items())


def test_checkpoint_of_the_first_publication() -> None:
    """Its filter has no bias, which zeros replace unless its own network is wanted."""
    reference, image = golden_network(filter_bias=False).eval(), phantoms()[0]
    filled, own = (converted(reference.state_dict(), role) for role in ("cooperative", "first_publication"))
    with torch.no_grad():
        logits = reference(image)
        for network in filled, own:
            torch.testing.assert_close(network(image.mT).mT[:, [0, 3, 2, 1]], logits, rtol=0, atol=1e-12)
    assert filled.get_parameter("image_encoder.code_decoupler.3.bias").count_nonzero() == 0
    assert (
        load_key_map(BUNDLE, "first_publication").to_reference(own.state_dict()).keys() == reference.state_dict().keys()
    )


def test_refinement_sees_no_constant_added_to_all_logits() -> None:
    network = golden_network().eval()
    logits = torch.from_numpy(np.random.RandomState(1).standard_normal((1, 4, 32, 32)))
    with torch.no_grad():
        torch.testing.assert_close(network.refine(logits + 7), network.refine(logits))
        warm = golden_network(temperature=1.0).eval().refine(logits / 2)
        torch.testing.assert_close(network.refine(logits), warm)


@cache
def codes() -> tuple[CooperativeNetwork, tuple[torch.Tensor, ...]]:
    """Network, and the codes of its noisy images in training mode."""
    network = golden_network()
    with torch.no_grad():
        return network, network.encode(phantoms()[2])


def ranking_loss(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    network, (image, label, _) = codes()[0], phantoms()
    return {
        "image/mse": lambda code: functional.mse_loss(network.image_decoder(code), image),
        "shape/ce": lambda code: functional.cross_entropy(network.segmentation_decoder(code), label[:, 0]),
        "shape/corr": lambda code: (network.segmentation_decoder(code) * one_hot()).mean(),
    }[name]


@cache
def ranked(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Code and gradient of one of the losses."""
    code = codes()[1][LOSSES[name]]
    return code, code_gradient(ranking_loss(name), code)


@pytest.mark.parametrize("name", LOSSES)
def test_mask_gradients(name: str) -> None:
    code, gradient = ranked(name)
    assert_close(ranking_loss(name)(code), f"mask/{name}/loss", rtol=1e-12)
    assert_close(gradient.mean((2, 3)), f"mask/{name}/grad_channel_mean")
    assert_close(gradient.mean(1).flatten(1), f"mask/{name}/grad_spatial_mean")
    assert all(parameter.grad is None for parameter in codes()[0].parameters())
    assert not code.requires_grad


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_masks(name: str, kind: str) -> None:
    code, gradient = ranked(name)
    key = f"mask/{name}/{kind}"
    for fraction, masked in ((0.05, (6, 1)), (0.25, (32, 9)), (0.5, (64, 18))):
        mask = MASKS[kind](gradient, fraction, soft=False)
        np.testing.assert_array_equal(mask, GOLDEN[f"{key}/hard_p{fraction}"])
        assert (mask == 0).flatten(1).sum(1).tolist() == 4 * [masked[kind == "spatial"]]
    np.random.seed(12)  # noqa: NPY002
    torch.manual_seed(12)
    fraction = LatentMasking().draw_fraction()
    assert fraction == GOLDEN["mask/rng_percentile"]
    mask = MASKS[kind](gradient, fraction)
    np.testing.assert_array_equal(mask, GOLDEN[f"{key}/soft_random"])
    assert_close((code * mask).sum(), f"{key}/soft_random_sum", rtol=1e-12)
    assert mask.min() >= 0
    assert mask[mask != 1].max() < 0.5


@pytest.mark.parametrize("kind", MASKS)
def test_drawn_mask_is_the_mask(kind: str) -> None:
    code = codes()[1][1]
    np.random.seed(12)  # noqa: NPY002
    torch.manual_seed(12)
    masked = LatentMasking((kind,))(code, ranking_loss("shape/ce"))
    np.testing.assert_allclose(masked, code * GOLDEN[f"mask/shape/ce/{kind}/soft_random"], rtol=1e-12)


def test_rankings_by_hand() -> None:
    gradient = torch.tensor([[3.0, -4.0, 1.0, -2.0]])[:, :, None, None]
    for ranking, expected in ("signed_desc", [0, 1, 0, 1]), ("signed_asc", [1, 0, 1, 0]), ("abs", [0, 0, 1, 1]):
        assert channel_mask(gradient, 0.5, soft=False, ranking=ranking).flatten().tolist() == expected
    assert channel_mask(gradient, 0.2, soft=False).flatten().tolist() == [1, 1, 1, 1]
    assert channel_mask(torch.ones(1, 4, 1, 1), 0.5, soft=False).flatten().tolist() == [1, 1, 1, 1]


def test_dropout_scales_survivors() -> None:
    code = codes()[1][1]
    torch.manual_seed(13)
    dropped = LatentMasking(("dropout",))(code, nn.Identity())
    assert_close(dropped.sum((2, 3)) / code.sum((2, 3)), "mask/dropout/channel_factor", rtol=1e-12)
    assert set(GOLDEN["mask/dropout/channel_factor"].flatten()) == {0, 2}


def test_sequence_of_kinds() -> None:
    masking = LatentMasking()
    random.seed(14)
    assert [masking.draw_kind() for _ in range(24)] == GOLDEN["mask/type_sequence_seed14"].tolist()
