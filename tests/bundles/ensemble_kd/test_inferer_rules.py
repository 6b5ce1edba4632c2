"""Whole-volume inference of ensemble_kd_kits_ct: devices, memory and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import Inferer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ensemble_kd.inferers import OrthogonalSliceInferer, ShiftedTilesInferer
from ensemble_kd.shared.validation import InputError
from tests.bundles.ensemble_kd.inferers import Recorder, Valid, both


@both
def test_device_of_network(make: Callable[..., Inferer]) -> None:
    """Batches go to where the network is. `meta` stands for another device, up to the way back, which it has not."""
    seen: list[str] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.device.type)
        raise InterruptedError

    for device in (None, "meta"):
        with pytest.raises(InterruptedError):
            make(device=device)(torch.ones(1, 1, 4, 4, 4), network)
    assert seen == ["cpu", "meta"]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: OrthogonalSliceInferer([]), "axes: must be one or more of 0, 1 and 2, none of them twice, got []"),
        (lambda: OrthogonalSliceInferer([1, 1]), "axes: must be one or more of 0, 1 and 2"),
        (lambda: OrthogonalSliceInferer([0, 3]), "axes: must be one or more of 0, 1 and 2"),
        (lambda: OrthogonalSliceInferer([-1]), "axes: must be one or more of 0, 1 and 2"),
        (lambda: OrthogonalSliceInferer(margin=-1), "margin: must not be negative"),
        (lambda: OrthogonalSliceInferer(divisor=0), "divisor: must be 1 or more"),
        (lambda: OrthogonalSliceInferer(batch_voxels=0), "batch_voxels: must be 1 or more"),
        (lambda: OrthogonalSliceInferer(temperature=0), "temperature: must be above 0"),
        (lambda: OrthogonalSliceInferer(temperature=float("nan")), "temperature: must be above 0"),
        (lambda: ShiftedTilesInferer(16, temperature=-1), "temperature: must be above 0"),
        (lambda: ShiftedTilesInferer(0), "tile: must be one edge or three"),
        (lambda: ShiftedTilesInferer([16, 16]), "tile: must be one edge or three"),
        (lambda: ShiftedTilesInferer([]), "tile: must be one edge or three"),
        (lambda: ShiftedTilesInferer([16, 4, 16]), "shifts: must be from 1 to 4, got 8"),
        (lambda: ShiftedTilesInferer(16, shifts=0), "shifts: must be from 1 to 16, got 0"),
        (lambda: ShiftedTilesInferer(16, batch=0), "batch: must be 1 or more"),
    ],
)
def test_bad_settings(make: Callable[[], Inferer], rule: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert rule in str(caught.value)
    assert "1 problem(s)" in str(caught.value)


@both
@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (1, 1, 1, 4, 4, 4), (0, 1, 4, 4, 4), (1, 1, 4, 0, 4)])
def test_bad_volumes(make: Callable[..., Inferer], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must have five dimensions"):
        make()(torch.zeros(shape), Recorder())


def test_network_of_another_size() -> None:
    """A margin that is too small or too great is an error, as is a network that does not answer for the whole tile."""
    volume = torch.zeros(1, 2, 8, 7, 6)
    for margin, answer in ((1, "[5, 4] instead of [7, 6]"), (0, "[3, 2] instead of [7, 6]")):
        with pytest.raises(InputError) as caught:
            OrthogonalSliceInferer(margin=margin)(volume, Valid())
        expected = f"margin: {margin} does not fit the network, which answers {answer}"
        assert expected in str(caught.value)
    with pytest.raises(InputError, match="margin: 1 does not fit"):
        OrthogonalSliceInferer(margin=1)(volume, nn.Identity())
    with pytest.raises(InputError) as caught:
        ShiftedTilesInferer(6, shifts=1)(volume, nn.Conv3d(2, 2, 3))
    assert "tile: the network answers [4, 4, 4] for a tile of [6, 6, 6]" in str(caught.value)


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the size of every piece of memory that an operation returns, in bytes by address."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[storage.data_ptr()] = max(storage.nbytes(), self.sizes.get(storage.data_ptr(), 0))
        return found


@pytest.mark.parametrize(
    ("inferer", "bound"),
    [
        (OrthogonalSliceInferer(batch_voxels=64 * 64), 64 * 64 * 2 * 4),
        (ShiftedTilesInferer(16, batch=2), 64 * 64 * 64 * 2),  # the visits, of 2 bytes each, are more than two tiles
    ],
)
def test_memory(inferer: Inferer, bound: int) -> None:
    """Besides input and result nothing is larger than a batch's logits; integers are not converted as a whole."""
    volume = torch.zeros(1, 1, 64, 64, 64, dtype=torch.uint8)

    def two_classes(x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, 2, *x.shape[2:])

    with Storages() as storages:
        found = inferer(volume, two_classes)
    own = {tensor.untyped_storage().data_ptr() for tensor in (volume, found)}
    assert storages.sizes[found.untyped_storage().data_ptr()] == 64**3 * 2 * 4
    assert max(size for place, size in storages.sizes.items() if place not in own) == bound
