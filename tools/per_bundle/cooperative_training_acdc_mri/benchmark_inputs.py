"""Slices, stacks, weights and config parts of the workloads, made when first asked for and shared by all variants."""

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

from cooperative_training.data import find_images
from cooperative_training.masking import LatentMasking
from cooperative_training.networks import CooperativeNetwork
from cooperative_training.training import CooperativeTraining
from tools import REPO
from tools.benchmark.variants import Array, config, evaluator_in_memory, volume_in_memory
from tools.convert import load_key_map
from tools.data.phantoms import phantoms

NAME = Path(__file__).parent.name
BUNDLE = REPO / "bundles" / NAME
SPACING = (1.5625, 1.5625, 10.0)
PIXDIM = (1.36719, 1.36719)

Size = tuple[int, ...]


@functools.cache
def heart(size: Size) -> Array:
    """Returns a label map of `size` (x, y), uint8: 1 right ventricle, 2 myocardium, 3 left ventricle."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij", sparse=True)
    right, wall, cavity = (x + 0.3) ** 2 + (y / 1.5) ** 2 < 0.06, x**2 + y**2 < 0.09, x**2 + y**2 < 0.04
    return np.select([cavity, wall, right], [3, 2, 1]).astype(np.uint8)


@functools.cache
def batch(size: Size) -> dict[str, torch.Tensor]:
    """Returns images in [0, 1] and label maps, both `(B, 1, x, y)` float32, for `size` (B, x, y)."""
    count, *shape = size
    noise = torch.rand((count, 1, *shape), generator=torch.Generator().manual_seed(0))
    hearts = [np.roll(heart(tuple(shape)), 3 * i, axis=(0, 1)) for i in range(count)]
    label = torch.from_numpy(np.stack(hearts))[:, None].float()
    return {"image": label / 5 + noise / 5, "label": label}


@functools.cache
def stack(size: Size) -> Array:
    """Returns a volume of `size` (x, y, z), int16: a bright heart in noise."""
    noise = np.random.default_rng(0).integers(0, 200, size, dtype=np.int16)
    return noise + 100 * heart(size[:2])[..., None].astype(np.int16)


@functools.cache
def labelled(size: Size) -> dict[str, str]:
    """Returns the paths of a phantom patient's volume and label of `size` (x, y, z); they go when Python ends."""
    folder = phantoms(NAME, f"{_folder().name}/{'-'.join(map(str, size))}", cases=1, shape=size, spacing=SPACING)
    found: dict[str, str] = find_images(folder)[0]
    return found | {"label": found["image"].replace(".nii", "_gt.nii")}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


@functools.cache
def network() -> CooperativeNetwork:
    """Returns the published network with seeded weights and fitting statistics; copy it before changing anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CooperativeNetwork()
    with torch.no_grad():
        for _ in range(20):  # for the running statistics
            made(batch((4, 48, 48))["image"])
    return made


def copied(device: torch.device) -> CooperativeNetwork:
    """Returns a copy of `network` as the configs place it."""
    return copy.deepcopy(network()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def cooperation(trained: CooperativeNetwork) -> CooperativeTraining:
    """Returns the losses of cooperative training with both codes masked by channel."""
    masking = LatentMasking(["channel"])
    return CooperativeTraining(trained, image_masking=masking, shape_masking=masking)


def optimizer(trained: CooperativeNetwork) -> torch.optim.Optimizer:
    """Returns the optimizer of `train.yaml`."""
    made: torch.optim.Optimizer = config(BUNDLE, "train", changes={"network": trained}).get_parsed_content("optimizer")
    return made


def reference_names() -> dict[str, torch.Tensor]:
    """Returns the state dict of `network` under the names, and in the orders, of the reference implementation."""
    state = network().state_dict()
    return load_key_map(NAME, state=state).to_reference(state)


def preparing() -> Compose:
    """Returns the transforms of `train.yaml` up to the cached volume."""
    made: Compose = config(BUNDLE, "train", changes={"pixdim": list(PIXDIM)}).get_parsed_content(
        "train::volume_transforms"
    )
    return made


def evaluator(image: Array, *, patch_size: Sequence[int], device: torch.device, amp: bool) -> Any:
    """Returns the evaluator of `inference.yaml` on a volume in memory instead of files."""
    changes = {
        "network": copied(device),
        "patch_size": list(patch_size),
        "pixdim": list(PIXDIM),
        "device": device,
        "amp": amp,
    }
    return evaluator_in_memory(BUNDLE, image, load=_loaded, changes=changes)


def _loaded(item: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Stands in for `LoadImaged`, from the array on."""
    return {"image": volume_in_memory(item["image"], steps=SPACING)}
