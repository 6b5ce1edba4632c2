"""Images, weights and config parts of the workloads, made when first asked for and then shared by all variants."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from tools import REPO
from tools.benchmark.variants import Array, config, evaluator_in_memory, volume_in_memory
from tools.convert import load_key_map
from tools.data.phantoms import write_volume
from vnet_atrial.networks import VNet

NAME = Path(__file__).parent.name
BUNDLE = REPO / "bundles" / NAME
SPACING = (0.625, 0.625, 0.625)

Size = tuple[int, ...]


@functools.cache
def atrium(size: Size, *, shift: float = 0.0) -> Array:
    """Returns a mask `size`, uint8 in {0, 1}: a body with two veins in the centre, or `shift` of the size beside it."""
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) - 2 * shift for n in size), indexing="ij", sparse=True
    )
    body = (x / 0.5) ** 2 + (y / 0.6) ** 2 + (z / 0.6) ** 2 < 1
    veins = ((y / 0.15) ** 2 + ((np.abs(x) - z - 0.3) / 0.15) ** 2 < 1) & (np.abs(x) < 0.8)
    return (body | veins).astype(np.uint8)


@functools.cache
def scan(size: Size, *, patch_size: Size, noise: int) -> dict[str, Array]:
    """Returns a volume of `size` in 0..255 with a background of 0 to `noise`, and the mask of its atrium.

    The atrium lies off the centre and fills most of a patch.
    """
    label = np.zeros(size, np.uint8)
    corner = [(full - patch) // 3 for full, patch in zip(size, patch_size, strict=True)]
    inner = tuple(slice(max(0, first), max(0, first) + patch) for first, patch in zip(corner, patch_size, strict=True))
    label[inner] = atrium(label[inner].shape)
    image = np.random.default_rng(0).integers(0, noise + 1, size, dtype=np.uint8)
    return {"image": np.where(label, np.uint8(200), image), "label": label}


@functools.cache
def case(size: Size, *, patch_size: Size) -> dict[str, str]:
    """Returns the paths of a noisy scan and its label as NRRD files like the challenge's; they go when Python ends."""
    volumes = scan(size, patch_size=patch_size, noise=60)
    paths = {key: Path(_folder().name) / "-".join(map(str, size)) / f"{key}.nrrd" for key in volumes}
    write_volume(paths["image"], volumes["image"], spacing=SPACING)
    write_volume(paths["label"], 255 * volumes["label"], spacing=SPACING)
    return {key: str(path) for key, path in paths.items()}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


@functools.cache
def batch(size: Size) -> dict[str, torch.Tensor]:
    """Returns an image of unit noise and a mask, both `(B, 1, x, y, z)` float32, for `size` (B, x, y, z)."""
    image = torch.randn(size, generator=torch.Generator().manual_seed(0))[:, None]
    label = torch.from_numpy(atrium(size[1:])).float().expand(size[0], 1, *size[1:])
    return {"image": image + label, "label": label.contiguous()}


@functools.cache
def network() -> VNet:
    """Returns the published network with seeded weights; copy it before changing anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VNet()


@functools.cache
def thresholding(level: float = 1.5) -> VNet:
    """Returns the published network with seeded weights, made to give the logit `20 (x - level)` for a voxel `x`.

    The last channel takes the input past all convolutions to the head, which looks at nothing else.
    """
    changed = copy.deepcopy(network())
    weights = changed.state_dict()
    for layer in ("encoder.0.expand", "decoder.3.convs.0.conv"):
        weights[f"{layer}.weight"][-1] = 0
        weights[f"{layer}.bias"][-1] = 0
    weights["head.conv.weight"].zero_()[:, -1] = 20
    weights["head.conv.bias"].fill_(-20 * level)
    weights["head.act.weight"].fill_(1)
    return changed


def reference_names(trained: VNet, role: str) -> dict[str, torch.Tensor]:
    """Returns the state dict under the key names and in the axis order of the reference implementation."""
    state = trained.state_dict()
    return load_key_map(NAME, role, state=state).to_reference(state)


def preparing(*, patch_size: Sequence[int], device: torch.device) -> Compose:
    """Returns the transforms of `train.yaml` up to the cached item."""
    parser = config(BUNDLE, "train", changes={"patch_size": list(patch_size), "device": device})
    return Compose(parser.get_parsed_content("train::deterministic_transforms"))


def evaluator(image: Array, *, patch_size: Sequence[int], device: torch.device, amp: bool) -> Any:
    """Returns the evaluator of `inference.yaml` with thresholding networks, on a volume in memory instead of files."""
    changes = {
        "network": copy.deepcopy(thresholding()).to(device),
        "locate": True,
        "locator": copy.deepcopy(thresholding()).to(device),
        "patch_size": list(patch_size),
        "device": device,
        "amp": amp,
    }
    return evaluator_in_memory(BUNDLE, image, load=_loaded, changes=changes)


def _loaded(item: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Stands in for `LoadImaged`, from the array on."""
    return {"image": volume_in_memory(item["image"], steps=(-SPACING[0], -SPACING[1], SPACING[2]))}
