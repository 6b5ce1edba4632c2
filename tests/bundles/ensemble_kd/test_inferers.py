"""Whole-volume inference of ensemble_kd_kits_ct: against the reference implementation, by brute force and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import nn
from torch.nn import functional

from ensemble_kd.inferers import OrthogonalSliceInferer, ShiftedTilesInferer
from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from tests.bundles.ensemble_kd.inferers import Recorder, Valid, both
from tests.bundles.ensemble_kd.reference import filled
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def member(index: int) -> DilatedCNN:
    """The reference's members: the second has the first's weights, but for the output layer, which is -0.7 times it."""
    network = filled(DilatedCNN(3, 35)).eval()
    layer = network.head.get_submodule("logits")
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        layer.weight *= (1, -0.7)[index]
        layer.bias.copy_(golden(f"bias{index}"))  # type: ignore[union-attr]  # it has one
    return network


def slice_by_slice(volume: torch.Tensor, network: nn.Module, *, margin: int, axis: int) -> torch.Tensor:
    """Probabilities `(classes, H, W, D)` of one volume `(C, H, W, D)`, a slice at a time."""
    padded = functional.pad(volume, [margin] * 6)
    slices = [padded.select(axis + 1, index + margin) for index in range(volume.shape[axis + 1])]
    with torch.no_grad():
        return torch.stack([network(each[None])[0].softmax(0) for each in slices], axis + 1)


@pytest.mark.parametrize("index", [0, 1])
def test_members_probabilities(index: int) -> None:
    """The reference's three orientations, its last planes corrected."""
    volume = golden("slices/image")[None, None]
    found = OrthogonalSliceInferer(margin=17)(volume, member(index))
    torch.testing.assert_close(found[0], golden(f"slices/probs{index}"), rtol=0, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(found.sum(1), torch.ones(1, *volume.shape[2:]), rtol=0, atol=1e-5)


def test_reference_leaves_out_last_planes() -> None:
    """Its probabilities are ours but on these, where one, two or all three orientations lack."""
    probabilities = golden("slices/probs0.legacy")
    found = OrthogonalSliceInferer(margin=17)(golden("slices/image")[None, None], member(0))[0]
    inner = (slice(None), *[slice(-1)] * 3)
    torch.testing.assert_close(found[inner], probabilities[inner], rtol=0, atol=1e-5, check_dtype=False)
    sums = [float(probabilities.sum(0)[place]) for place in ((-1, 3, 3), (3, -1, -1), (-1, -1, -1))]
    assert sums == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-6)


def test_tilings() -> None:
    """The reference's eight shifted tilings, divided by the number of visits."""
    volume, network = golden("tiles/image")[None, None], filled(ResNet(3, 3)).eval()
    found = ShiftedTilesInferer(16, batch=3)(volume, network)
    torch.testing.assert_close(found[0], golden("tiles/probs"), rtol=0, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(found.sum(1), torch.ones(1, *volume.shape[2:]), rtol=0, atol=1e-5)


def test_whole_slice_is_its_patches() -> None:
    """Every pixel's patch alone gives what it has in the slice."""
    network, volume = member(0), golden("slices/image")[None, None]
    found = OrthogonalSliceInferer([2], margin=17)(volume, network)
    padded = functional.pad(volume[..., 5], [17] * 4)
    for row, column in ((0, 0), (7, 11), (19, 23), (0, 23)):
        with torch.no_grad():
            patch = network(padded[..., row : row + 35, column : column + 35]).softmax(1)
        torch.testing.assert_close(found[..., row, column, 5], patch[..., 0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", [[0], [2], [1, 0], [0, 1, 2]])
@pytest.mark.parametrize("batch_voxels", [1, 100, 300, 10**6])
def test_equals_slice_by_slice(axes: list[int], batch_voxels: int) -> None:
    """Odd sizes, two volumes and two channels, batches of any size."""
    volumes, network = torch.randn(2, 2, 5, 7, 3, generator=torch.Generator().manual_seed(1)), Valid()
    found = OrthogonalSliceInferer(axes, margin=2, batch_voxels=batch_voxels)(volumes, network)
    expected = [
        torch.stack([slice_by_slice(volume, network, margin=2, axis=axis) for axis in axes]).mean(0)
        for volume in volumes
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


def test_mean_of_orientations_by_hand() -> None:
    """A volume of 2 x 1 x 1: axis 0 shows each voxel alone, in the two others they stand above each other."""
    network, volume = Recorder(), torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1)
    found = OrthogonalSliceInferer()(volume, network)
    assert [tuple(batch.shape) for batch in network.batches] == [(2, 1, 1, 1), (1, 1, 2, 1), (1, 1, 2, 1)]
    first, second = torch.tensor([1.0, 1, 1]).sigmoid().mean(), torch.tensor([3.0, 4, 4]).sigmoid().mean()
    assert found[0, 0].flatten().tolist() == pytest.approx([float(first), float(second)])
    softer = OrthogonalSliceInferer([0], temperature=2)(volume, network)
    assert softer[0, 0].flatten().tolist() == pytest.approx(torch.tensor([0.5, 1.5]).sigmoid().tolist())


def test_batches_of_slices() -> None:
    """As few as the bound allows and as even as can be: no single slice is left over."""
    network, volume = Recorder(), torch.zeros(1, 1, 10, 4, 5)
    OrthogonalSliceInferer([0], margin=0, batch_voxels=69)(volume, network)  # three slices of 20 pixels fit
    assert [len(batch) for batch in network.batches] == [2, 3, 2, 3]
    network.batches.clear()
    OrthogonalSliceInferer([0], batch_voxels=180)(volume, network)  # nine would leave one
    assert [len(batch) for batch in network.batches] == [5, 5]


def test_zeros_around_slices() -> None:
    """The margin on all sides, then more at the end up to a multiple; none where the size is one."""
    network, volume = Recorder(), torch.ones(1, 1, 1, 4, 5)
    OrthogonalSliceInferer([0], divisor=4)(volume, network)
    (batch,) = network.batches
    assert batch.shape == (1, 1, 4, 8)
    assert batch[0, 0].sum(0).tolist() == [4] * 5 + [0] * 3
    seen: list[torch.Tensor] = []

    def valid(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[..., 1:-1, 1:-1].repeat(1, 2, 1, 1)

    found = OrthogonalSliceInferer([0], margin=1, divisor=5)(volume, valid)
    assert seen[0].shape == (1, 1, 10, 10)
    assert seen[0][0, 0].nonzero().aminmax(dim=0).min.tolist() == [1, 1]
    assert seen[0].sum() == 20
    assert seen[0].stride() == (100, 1, 10, 1)  # channels last, which one channel leaves open
    assert found.shape == (1, 2, 1, 4, 5)


@pytest.mark.parametrize("network", [ResNet(2, 2, channels=4, blocks=1), UNet(2, 2, channels=(2, 4, 8, 16))])
def test_networks_that_halve_the_resolution(network: nn.Module) -> None:
    """They take any size, and answer for each slice as if it stood alone in its corner of zeros."""
    volume = torch.randn(1, 1, 11, 16, 9, generator=torch.Generator().manual_seed(2))
    filled(network).eval()
    found = OrthogonalSliceInferer([0], divisor=8)(volume, network)
    with torch.no_grad():
        expected = network(functional.pad(volume[:, :, 4], [0, 7]))[..., :9].softmax(1)
    torch.testing.assert_close(found[:, :, 4], expected, rtol=0, atol=1e-6)


def brute_force_tilings(volume: torch.Tensor, network: nn.Module, *, tile: int, shifts: int) -> torch.Tensor:
    """As the reference pads and tiles: everything, tiles of mere padding included."""
    size = [(length // tile + 1) * tile + shifts for length in volume.shape]
    padded = torch.zeros(size)
    padded[tuple(map(slice, volume.shape))] = volume
    total, visits = torch.zeros(2, *size), torch.zeros(size)
    for shift in range(shifts):
        for first in np.ndindex(*[(length - shift) // tile for length in size]):
            place = tuple(slice(shift + step * tile, shift + (step + 1) * tile) for step in first)
            with torch.no_grad():
                total[(slice(None), *place)] += network(padded[place][None, None])[0].softmax(0)
            visits[place] += 1
    return (total / visits)[(slice(None), *map(slice, volume.shape))]


@pytest.mark.parametrize("shifts", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("size", [(4, 4, 4), (5, 8, 11), (3, 9, 1)])
def test_equals_every_tiling(shifts: int, batch: int, size: tuple[int, int, int]) -> None:
    volume, network = torch.randn(size, generator=torch.Generator().manual_seed(3)), Recorder()
    found = ShiftedTilesInferer(4, shifts=shifts, batch=batch)(volume[None, None], network)
    assert all(batch.count_nonzero(dim=(1, 2, 3, 4)).all() for batch in network.batches)
    expected = brute_force_tilings(volume, network, tile=4, shifts=shifts)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)


def test_tilings_by_hand() -> None:
    """Three voxels in tiles of two: the first is seen once, at place 0, the others at both, in either order."""
    network, volume = Recorder(), torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1, 1)
    found = ShiftedTilesInferer([2, 1, 1], shifts=1)(volume, network)
    assert [batch.flatten().tolist() for batch in network.batches] == [[1, 3], [5, 0]]
    assert found[0, 0].flatten().tolist() == pytest.approx(torch.tensor([1.0, 4, 5]).sigmoid().tolist())
    network.batches.clear()
    found = ShiftedTilesInferer(2, shifts=2, temperature=2)(volume.expand(1, 1, 3, 3, 3), network)
    assert len(network.batches) == 8 + 1
    logits = torch.tensor([[5.0], [6]]) / 2  # the last voxel is the first of its tile without shift, else the second
    assert float(found[0, 0, 2, 2, 2]) == pytest.approx(float(logits.sigmoid().mean()))
    assert float(found[0, 0, 2, 0, 2]) == pytest.approx(float(logits[0].sigmoid()))


@both
def test_metadata_is_kept(make: Callable[..., Inferer]) -> None:
    affine = torch.diag(torch.tensor([1.5, 1.5, 2.5, 1], dtype=torch.float64))
    plain = torch.randn(1, 1, 4, 5, 6)
    found = make()(MetaTensor(plain, affine=affine), Recorder())
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, affine)
    expected = make()(plain, Recorder())
    assert type(expected) is torch.Tensor
    assert torch.equal(found.as_tensor(), expected)


@both
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float32, torch.float64])
def test_types(make: Callable[..., Inferer], dtype: torch.dtype) -> None:
    """Networks get float32, or float64 if the volumes are such; no precision is lost on the way to the mean."""
    volume, network = torch.arange(120).reshape(1, 1, 4, 5, 6), Recorder()
    found = make(temperature=40)(volume.to(dtype), network)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    assert {found.dtype, *(batch.dtype for batch in network.batches)} == {kind}
    expected = make(temperature=40)(volume.double(), Recorder())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-15 if kind == torch.float64 else 1e-6)


@both
def test_half_precision_answers_are_averaged_in_single(make: Callable[..., Inferer]) -> None:
    """Logits that bfloat16 holds exactly give what single precision gives."""
    volume = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make()(volume, Recorder(torch.bfloat16))
    torch.testing.assert_close(found, make()(volume, Recorder()), rtol=0, atol=1e-7)


@both
def test_networks_more_arguments(make: Callable[..., Inferer]) -> None:
    def network(x: torch.Tensor, factor: float, *, offset: float) -> torch.Tensor:
        return torch.cat([factor * x + offset, 0 * x], 1)

    found = make()(torch.ones(1, 1, 2, 2, 2), network, 2.0, offset=1.0)
    assert found[0, 0].unique().tolist() == pytest.approx([float(torch.tensor(3.0).sigmoid())])


@both
def test_keeps_no_graph_and_leaves_input_alone(make: Callable[..., Inferer]) -> None:
    volume = torch.randn(2, 1, 4, 5, 6)
    before = volume.clone()

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.relu_(), x], 1) * torch.ones((), requires_grad=True)

    assert not make()(volume, network).requires_grad
    assert torch.equal(volume, before)
