"""The networks of ensemble_kd_kits_ct against the reference implementation, in double precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from torch import nn

from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from tests.bundles.ensemble_kd.reference import Array, count, filled, noise, order, without_dropout
from tools import REPO
from tools.convert import load_key_map, load_role

BUNDLE = "ensemble_kd_kits_ct"
GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
MANIFEST: dict[str, dict[str, Any]] = json.loads(str(GOLDEN["manifest"]))
# Roles of the key map, and whose names they translate.
ROLES = {
    "dilated_cnn": "dil2D_rf35.nc3",
    "dilated_cnn_67": "dil2D_rf67.nc3",
    "dilated_cnn_131": "dil2D_rf131.nc2",
    "resnet": "Resnet3DNEW.nc3",
    "resnet_2d": "Resnet2DNEW.nc3",
    "unet": "Unet3DSmallOrig.nc3",
    "unet_2d": "Unet2DSmallOrig.nc3",
}

Build = Callable[[int], nn.Module]

# The reference's name: role of the key map, ours but for the number of classes, parameters for two and three classes.
NETWORKS: dict[str, tuple[str, Build, int, int]] = {
    "dil2D_rf131": ("dilated_cnn", lambda n: DilatedCNN(n, 131), 87_490, 87_683),
    "dil2D_rf67": ("dilated_cnn", lambda n: DilatedCNN(n, 67), 78_242, 78_435),
    "dil2D_rf35": ("dilated_cnn", lambda n: DilatedCNN(n, 35), 68_994, 69_187),
    "Resnet2DNEW": ("resnet", lambda n: ResNet(2, n), 1_960_770, 1_960_803),
    "Resnet3DNEW": ("resnet", lambda n: ResNet(3, n), 5_868_930, 5_868_963),
    "Unet2DSmallOrig": ("unet", lambda n: UNet(2, n, deep_supervision=True), 1_931_418, 1_933_283),
    "Unet3DSmallOrig": ("unet", lambda n: UNet(3, n, deep_supervision=True), 5_613_226, 5_618_807),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def full(name: str) -> Any:
    """A network of the reference with its golden weights, in double precision and evaluation, for three classes."""
    return filled(NETWORKS[name][1](3)).double().eval()


def assert_golden(found: torch.Tensor, key: str) -> None:
    """Every third voxel, and mean and mean square of all of every class."""
    ours: Array = found.detach().numpy()
    axes, every, third = (0, *range(2, ours.ndim)), slice(None), slice(None, None, 3)
    np.testing.assert_allclose(ours[(every, every, *[third] * (ours.ndim - 2))], GOLDEN[key], rtol=0, atol=1e-9)
    moments = np.stack([ours.mean(axes), (ours**2).mean(axes)])
    np.testing.assert_allclose(moments, GOLDEN[f"{key}/moments"], rtol=1e-10, atol=1e-10)


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """Hash of names and shapes in their order, as of the reference's state dict."""
    rows = (f"{name}:{tuple(value.shape)}" for name, value in state.items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


@each_network
def test_inventory(name: str) -> None:
    """Parameters for two and three classes; entries by the reference's names, shapes and order; dropout."""
    role, build, *parameters = NETWORKS[name]
    with torch.device("meta"):
        two, three = build(2), build(3)
    golden = MANIFEST[f"{name}.nc3"]
    assert [count(two), count(three)] == parameters
    state = three.state_dict()
    assert len(state) == golden["entries"]
    key_map = load_key_map(BUNDLE, role, state=state)
    assert list(key_map.names) == order(three)
    assert fingerprint({theirs: state[ours] for ours, theirs in key_map.names.items()}) == golden["sha256"]
    dropout = (x for x in three.modules() if isinstance(x, nn.modules.dropout._DropoutNd))
    assert [f"{type(x).__name__}({x.p})" for x in dropout] == golden["dropout"]


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_a_network_of_the_reference(role: str) -> None:
    """Its override alone defines the network, whose state dict converts there and back bit by bit."""
    override = load_role(BUNDLE, role).override
    network = ConfigParser(override).get_parsed_content("network_def")
    ours = filled(network).state_dict()
    key_map = load_key_map(BUNDLE, role, state=ours)
    theirs = key_map.to_reference(ours)
    assert fingerprint(theirs) == MANIFEST[ROLES[role]]["sha256"]
    back = key_map.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)


def test_roles_write_different_files() -> None:
    roles = yaml.safe_load((REPO / "tools/per_bundle" / BUNDLE / "keys.yaml").read_text(encoding="utf-8"))
    assert roles.keys() == ROLES.keys()
    assert len({role["file"] for role in roles.values()}) == len(ROLES)


@each_network
def test_logits(name: str) -> None:
    with torch.no_grad():
        found = full(name)(noise(*MANIFEST[f"{name}.nc3"]["size"]))
    assert_golden(found, f"{name}.nc3/eval")


@pytest.mark.parametrize("receptive_field", [35, 67, 131])
def test_logits_of_two_classes(receptive_field: int) -> None:
    name = f"dil2D_rf{receptive_field}.nc2"
    with torch.no_grad():
        found = filled(DilatedCNN(2, receptive_field)).double().eval()(noise(*MANIFEST[name]["size"]))
    assert_golden(found, f"{name}/eval")


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("dil2D_rf35", lambda: DilatedCNN(3, 35)),
        ("Resnet3DNEW", lambda: ResNet(3, 3)),
        ("Unet3DSmallOrig", lambda: UNet(3, 3)),
    ],
)
def test_logits_in_training(name: str, build: Callable[[], nn.Module]) -> None:
    """With statistics of the batch."""
    network = without_dropout(filled(build()).double().train())
    with torch.no_grad():
        found = network(noise(*MANIFEST[f"{name}.nc3"]["size"]))
    assert_golden(found, f"{name}.nc3/train")


def test_deep_supervision() -> None:
    """The reference returns probabilities of the lower resolutions, in evaluation too; ours are logits, in training."""
    network = without_dropout(full("Unet3DSmallOrig").train())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    with torch.no_grad():
        main, mid, low = network(noise(1, 1, 16, 16, 24))
    assert_golden(main, "Unet3DSmallOrig.nc3/eval")
    assert_golden(mid.softmax(1), "Unet3DSmallOrigDS.nc3/mid")
    assert_golden(low.softmax(1), "Unet3DSmallOrigDS.nc3/low")


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 1, 32, 40)), (3, (1, 1, 16, 16, 24))])
def test_unet_without_deep_supervision(dims: int, size: tuple[int, ...]) -> None:
    """It lacks the auxiliary heads, and nothing else of the reference's."""
    deep, plain = UNet(dims, 3, deep_supervision=True), filled(UNet(dims, 3)).double().eval()
    lacking = [name for name in deep.state_dict() if name.startswith(("decoder.0.head", "decoder.1.head"))]
    assert list(plain.state_dict()) == [name for name in deep.state_dict() if name not in lacking]
    assert count(deep) - count(plain) == {2: 5_376, 3: 16_212}[dims]
    assert len(lacking) == 8
    with torch.no_grad():
        assert_golden(plain(noise(*size)), f"Unet{dims}DSmallOrig.nc3/eval")


@pytest.mark.parametrize("receptive_field", [35, 67, 131])
def test_receptive_field(receptive_field: int) -> None:
    """What changes the pixel in the middle of a 9 x 9 output: a square of that width, which starts at its place."""
    network = filled(DilatedCNN(2, receptive_field)).double().eval()
    x = noise(1, 1, receptive_field + 8, receptive_field + 8).requires_grad_()
    out = network(x)
    assert out.shape == (1, 2, 9, 9)
    (gradient,) = torch.autograd.grad(out[0, :, 4, 4].sum(), x)
    seen = gradient[0, 0].nonzero()
    extent = [seen.amin(0).tolist(), seen.amax(0).tolist()]
    assert extent == GOLDEN[f"seen/{receptive_field}"].tolist() == [[4, 4], [receptive_field + 3] * 2]
