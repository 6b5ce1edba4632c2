"""Scans, weights and config parts of the workloads, made when first asked for and shared by all variants."""

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
from torch import nn

from hadnet.networks import Discriminator, SegmentationNetwork
from hadnet.shared.data import read_split
from hadnet.shared.sequences import brain_mask
from tools import REPO
from tools.benchmark.variants import Array, config, evaluator_in_memory, volume_in_memory
from tools.convert import load_key_map
from tools.data.phantoms import phantoms

NAME = Path(__file__).parent.name
BUNDLE = REPO / "bundles" / NAME
SEQUENCES = ("flair", "t1ce", "t1", "t2")
STUDENT = [0, 2, 3]  # what it sees of them
MADE = {"student": SegmentationNetwork, "teacher": SegmentationNetwork, "discriminator": Discriminator}
CHANNELS = {"student": 3, "teacher": 4, "discriminator": 7}

Size = tuple[int, ...]


@functools.cache
def brain(size: Size) -> Array:
    """Returns a label map of `size`, uint8: 0 outside, 1 brain, and in it 2 oedema, 3 enhancing, 4 necrotic."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij", sparse=True)
    far = (x - 0.2) ** 2 + (y + 0.1) ** 2 + (z - 0.1) ** 2
    inside = (x / 0.57) ** 2 + (y / 0.7) ** 2 + (z / 0.85) ** 2 < 1
    return np.select([far < 0.02, far < 0.04, far < 0.09, inside], [4, 3, 2, 1]).astype(np.uint8)


@functools.cache
def scan(size: Size) -> Array:
    """Returns a scan of `size` (x, y, z), int16 `(4, x, y, z)`: noise in a brain, a tumour, 0 outside."""
    parts, draw = brain(size), np.random.default_rng(0)
    signal = np.array(
        [[0, 500, 900, 700, 600], [0, 500, 400, 900, 300], [0, 500, 400, 380, 300], [0, 500, 800, 700, 900]]
    )
    noise = draw.integers(0, 200, (len(SEQUENCES), *size), dtype=np.int16)
    return np.where(parts, signal.astype(np.int16)[:, parts] + noise, np.int16(0))


@functools.cache
def student_scan(size: Size) -> Array:
    """Returns what the student sees of `scan`."""
    return scan(size)[STUDENT]


@functools.cache
def batch(size: Size) -> dict[str, torch.Tensor]:
    """Returns `image` `(1, 4, *size)` float32 from 0 to 1, and `label` `(1, 1, *size)` uint8: 1 NCR, 2 ED, 3 ET."""
    label = np.array([0, 0, 2, 3, 1], np.uint8)[brain(size)]
    return {"image": torch.from_numpy(scan(size))[None].float() / 1100, "label": torch.from_numpy(label)[None, None]}


@functools.cache
def case(size: Size, *, spacing: Sequence[float]) -> dict[str, str]:
    """Returns the files of a phantom patient of `size` (x, y, z), as `train.yaml` has them; they go with Python."""
    folder = phantoms(NAME, f"{_folder().name}/{'-'.join(map(str, size))}", cases=2, shape=size, spacing=spacing)
    return read_split(folder, sequences=SEQUENCES)["training"][0]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


@functools.cache
def network(role: str = "student", *, filters: int = 8) -> nn.Module:
    """Returns student, teacher or discriminator with seeded weights; copy it before changing anything."""
    options = {} if role == "discriminator" else {"dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(MADE).index(role))
        return MADE[role](CHANNELS[role], filters=filters, **options)


def copied(device: torch.device, role: str = "student", *, filters: int) -> nn.Module:
    """Returns a copy of `network`."""
    return copy.deepcopy(network(role, filters=filters)).to(device)


def reference_names(*roles: str, filters: int) -> dict[str, torch.Tensor]:
    """Returns the state dict of networks under the names of the reference, each with its role in front."""
    states = {role: network(role, filters=filters).state_dict() for role in roles}
    renamed = {role: load_key_map(NAME, role, state=state).to_reference(state) for role, state in states.items()}
    return {f"{role}.{name}": value for role, state in renamed.items() for name, value in state.items()}


def trainer(size: Size, *, filters: int, device: torch.device, amp: bool) -> tuple[Any, dict[str, nn.Module]]:
    """Returns the trainer of distillation, an epoch of which is one step on `batch`, and its networks.

    Args:
        size: voxels.
        filters: of the networks.
        device: where it computes.
        amp: mixed precision, on CUDA only.
    """
    networks = {role: copied(device, role, filters=filters) for role in MADE}
    sample = {key: value.to(device) for key, value in batch(size).items()}
    changes = {
        "device": device,
        "amp": amp and device.type == "cuda",
        "max_epochs": 1,
        "threshold": 1.0,  # the discriminator always learns
        "train::dataloader": [sample],
        "train::key_metric": None,
        "train::handlers": [],
        **{{"student": "network"}.get(role, role): made for role, made in networks.items()},
    }
    made = config(BUNDLE, "train", changes=changes).get_parsed_content("train::trainer")
    made.logger.setLevel("WARNING")
    return made, networks


def preparing(*, size: Size, pixdim: Sequence[float] = (1, 1, 1)) -> Compose:
    """Returns the transforms of `train.yaml` up to the cached item."""
    changes = {"size": list(size), "pixdim": list(pixdim), "augmentation": []}
    made: Compose = config(BUNDLE, "train", changes=changes).get_parsed_content("train::preprocessing")
    return made


def evaluator(image: Array, *, size: Size, filters: int, device: torch.device, amp: bool) -> Any:
    """Returns the evaluator of `inference.yaml` for the student, on a volume in memory instead of files."""
    changes = {
        "network": copied(device, filters=filters),
        "size": list(size),
        "device": device,
        "amp": amp,
    }
    return evaluator_in_memory(BUNDLE, image, load=_loaded, changes=changes)


def _loaded(item: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Stands in for `LoadSequencesd`, from the array on."""
    image = volume_in_memory(item["image"], steps=(-1, -1, 1), channel=0)
    return {"image": image, "brain": brain_mask(image).to(torch.uint8)}
