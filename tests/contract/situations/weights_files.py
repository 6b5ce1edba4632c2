"""Weights that are small and expand, and weights that are no numbers: rejected before a scan is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.contract.situations import Invalid, Scene, Situation

Change = Callable[[dict[str, torch.Tensor]], object]


def weights(scene: Scene) -> Path:
    return scene.folder / "models/model.pt"


def compressed(scene: Scene) -> None:
    """The same weights and zeros that the zip holds in a thousandth of their bytes."""
    path = weights(scene)
    torch.save({**torch.load(path, weights_only=True), "further": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def changed(scene: Scene, change: Change) -> None:
    state: dict[str, Any] = torch.load(weights(scene), weights_only=True)
    change(state)
    torch.save(state, weights(scene))


def last(state: dict[str, torch.Tensor]) -> str:
    """Name of the last weights that are real numbers."""
    return [name for name, tensor in state.items() if tensor.is_floating_point()][-1]


def poison(state: dict[str, torch.Tensor]) -> None:
    state[last(state)].flatten()[0] = torch.nan


def replace(state: dict[str, torch.Tensor], convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state[last(state)] = convert(state[last(state)])


KINDS: dict[str, tuple[Callable[[Scene], Any], Invalid]] = {
    "weights are compressed": (
        compressed,
        Invalid(["model.pt", "is compressed, torch.save stores tensors as"]),
    ),
    "weights share one number": (
        partial(changed, change=partial(replace, convert=lambda tensor: torch.zeros(1).expand(10**6, 10**6))),
        Invalid(["model.pt", "is larger than what is stored of it"]),
    ),
    "weights are sparse": (
        partial(changed, change=partial(replace, convert=torch.Tensor.to_sparse)),
        Invalid(["model.pt", "asks for torch._utils._rebuild_sparse_tensor"]),
    ),
    "a weight is NaN": (partial(changed, change=poison), Invalid(["model.pt", "holds NaN or infinite numbers"])),
    "weights are complex": (
        partial(changed, change=partial(replace, convert=lambda tensor: tensor * 1j)),
        Invalid(["model.pt", "is torch.complex64 instead of torch.float32"]),
    ),
    "weights are whole numbers": (
        partial(changed, change=partial(replace, convert=torch.Tensor.long)),
        Invalid(["model.pt", "is torch.int64 instead of torch.float32"]),
    ),
}
SITUATIONS = [Situation(name, make, wanted, bundles=["vnet_atrial_mri"]) for name, (make, wanted) in KINDS.items()]
