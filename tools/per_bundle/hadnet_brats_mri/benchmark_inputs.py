"""Scans, weights and config parts of the workloads, made when first asked for and shared by all settings."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from torch import nn

from hadnet.networks import Discriminator, SegmentationNetwork
from hadnet.shared.data import read_split
from hadnet.shared.sequences import brain_mask
from tools import REPO
from tools.benchmark.settings import Array, config, evaluator_in_memory, volume_in_memory
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
def cases(size: Size, *, spacing: Sequence[float]) -> list[dict[str, str]]:
    """Returns the files of two phantom patients of `size` (x, y, z), as `train.yaml` has them; they go with Python."""
    folder = phantoms(NAME, f"{_folder().name}/{'-'.join(map(str, size))}", cases=2, shape=size, spacing=spacing)
    split = read_split(folder, sequences=SEQUENCES)
    return split["training"] + split["validation"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


@functools.cache
def network(role: str = "student", *, filters: int = 8, dropout: float = 0.0) -> nn.Module:
    """Returns student, teacher or discriminator with seeded weights; copy it before changing anything."""
    options = {} if role == "discriminator" else {"dropout": dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(MADE).index(role))
        return MADE[role](CHANNELS[role], filters=filters, **options)


def copied(device: torch.device, role: str = "student", *, filters: int, dropout: float = 0.0) -> nn.Module:
    """Returns a copy of `network`."""
    return copy.deepcopy(network(role, filters=filters, dropout=dropout)).to(device)


def reference_names(*roles: str, filters: int) -> dict[str, torch.Tensor]:
    """Returns the state dict of networks under the names of the reference, each with its role in front."""
    states = {role: network(role, filters=filters).state_dict() for role in roles}
    renamed = {role: load_key_map(NAME, role, state=state).to_reference(state) for role, state in states.items()}
    return {f"{role}.{name}": value for role, state in renamed.items() for name, value in state.items()}


def trainer(
    size: Size, *, filters: int, device: torch.device, amp: bool, overlays: Sequence[str] = ()
) -> tuple[Any, dict[str, nn.Module]]:
    """Returns the trainer of a stage, an epoch of which is one step on `batch`, and its networks.

    Args:
        size: voxels.
        filters: of the networks.
        device: where it computes.
        amp: mixed precision, on CUDA only.
        overlays: stems of the configs on top of `train.yaml`; those of pre-training have no teacher and discriminator.
    """
    networks = {role: copied(device, role, filters=filters) for role in (["student"] if overlays else MADE)}
    sample = {key: value.to(device) for key, value in batch(size).items()}
    if overlays:
        sample["image"] = sample["image"][:, STUDENT]
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
    made = config(BUNDLE, "train", *overlays, changes=changes).get_parsed_content("train::trainer")
    made.logger.setLevel("WARNING")
    return made, networks


def random_transforms(size: Size, *, device: torch.device) -> Compose:
    """Returns the random transforms of pre-training with seeded randomness."""
    parser = config(BUNDLE, "train", "pretrain", changes={"size": list(size), "device": device})
    return Compose(parser.get_parsed_content("train::random_transforms")).set_random_state(0)


def loader(files: Size, *, spacing: Sequence[float], pixdim: Sequence[float], size: Size, cached: bool) -> DataLoader:
    """Returns the data loader of `train.yaml` on `cases`, in order; without its cache every access reads the files."""
    changes = {
        "size": list(size),
        "pixdim": list(pixdim),
        "train::dataset::data": cases(files, spacing=spacing),
        "train::dataset::num_workers": 1,
        "train::dataset::progress": False,
        "train::dataloader::shuffle": False,
        "augmentation": [],  # which has a row of its own
    }
    parser = config(BUNDLE, "train", changes=changes)
    if not cached:
        parser["train::dataset"] = Dataset(
            changes["train::dataset::data"], parser.get_parsed_content("train::preprocessing")
        )
    return parser.get_parsed_content("train::dataloader")


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
