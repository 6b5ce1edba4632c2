"""Scans, weights and config parts of the workloads, made when first asked for and shared by all variants."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Compose

from lachinov_distillation.labels import CHANNELS
from lachinov_distillation.networks import ResUNet
from lachinov_distillation.shared.data import read_split
from lachinov_distillation.shared.regions import region_mask
from lachinov_distillation.transforms import NormalizePositived
from tools import REPO
from tools.benchmark.variants import config
from tools.convert import KeyMap, load_key_map
from tools.data.phantoms import Volume, phantoms
from tools.per_bundle.lachinov_distillation_brats_mri.phantoms import case

NAME = Path(__file__).parent.name
BUNDLE = REPO / "bundles" / NAME
SEQUENCES = ("t1", "t1ce", "t2", "flair")
FIELD = (180.0, 220.0, 180.0)  # mm

Size = tuple[int, ...]


@functools.cache
def batch(size: Size) -> dict[str, torch.Tensor]:
    """Returns `image` `(1, 4, *size)` float32 as the student sees it, `label` `(1, 3, *size)`, soft at its edges."""
    spacing = tuple(length / voxels for length, voxels in zip(FIELD, size, strict=True))
    files = case(np.random.default_rng(0), shape=size, spacing=spacing)
    volumes = {
        Path(name).name.rpartition("_")[2].partition(".")[0]: torch.from_numpy(content.voxels)
        for name, content in files.items()
        if isinstance(content, Volume)
    }
    sequences, label = [volumes[name].float() for name in SEQUENCES], volumes["seg"]
    masks = torch.stack([region_mask(label, region) for region in CHANNELS]).float()
    image = NormalizePositived("image")({"image": torch.stack(sequences)})["image"]
    return {"image": image[None], "label": (masks + masks.roll(1, 3))[None] / 2}


@functools.cache
def network() -> ResUNet:
    """Returns the student with seeded weights; copy it before changing anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResUNet()


def key_map() -> KeyMap:
    """Returns the student's parameter names, ours and the reference's."""
    return load_key_map(NAME, state=network().state_dict())


def reference_names() -> dict[str, torch.Tensor]:
    """Returns the student's state dict under the names of the reference, with what it never uses."""
    return key_map().to_reference(network().state_dict())


def trainer(size: Size, *, device: torch.device, amp: bool, learning_rate: float) -> tuple[Any, ResUNet]:
    """Returns the trainer of the student, an epoch of which is one step on `batch`, and its network."""
    student = copy.deepcopy(network()).to(device)
    changes = {
        "device": device,
        "amp": amp and device.type == "cuda",
        "max_epochs": 1,
        "learning_rate": learning_rate,
        "network": student,
        "train::dataloader": [{key: value.to(device) for key, value in batch(size).items()}],
        "train::key_metric": None,
        "train::handlers": [],
    }
    made = config(BUNDLE, "train", changes=changes).get_parsed_content("train::trainer")
    made.logger.setLevel("WARNING")
    return made, student


def predictor() -> Inferer:
    """Returns the mean over mirror images of `inference.yaml`."""
    return config(BUNDLE, "inference", changes={}).get_parsed_content("predictor")


@functools.cache
def patient(size: Size) -> dict[str, str]:
    """Returns the files of a phantom patient of `size` (x, y, z), as `train.yaml` has them; they go with Python."""
    spacing = tuple(length / voxels for length, voxels in zip((240, 240, 180), size, strict=True))
    folder = phantoms(NAME, f"{_folder().name}/{'-'.join(map(str, size))}", cases=2, shape=size, spacing=spacing)
    return read_split(folder, sequences=SEQUENCES)["training"][0]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


def preparing(**changes: Any) -> Compose:
    """Returns the transforms of `train.yaml` up to the cached item."""
    parser = config(BUNDLE, "train", changes={**changes, "train::random_transforms": []})
    made: Compose = parser.get_parsed_content("train::preprocessing")
    return made


def random_transforms(patch: Size) -> Compose:
    """Returns what cuts and deforms one sample of a cached scan, with seeded randomness."""
    parser = config(BUNDLE, "train", changes={"patch_size": list(patch)})
    return Compose(parser.get_parsed_content("train::random_transforms")).set_random_state(0)
