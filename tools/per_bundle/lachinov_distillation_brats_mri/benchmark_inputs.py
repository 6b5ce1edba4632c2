"""Scans, weights and config parts of the workloads, made when first asked for and shared by all settings."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import Inferer
from monai.transforms import Compose

from lachinov_distillation.labels import CHANNELS
from lachinov_distillation.networks import ResUNet
from lachinov_distillation.shared.regions import region_mask
from lachinov_distillation.transforms import NormalizePositived
from tools import REPO
from tools.benchmark.settings import config
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
def data_folder(size: Size) -> Path:
    """Returns a folder of six phantom patients of `size` (x, y, z); it goes with Python."""
    spacing = tuple(length / voxels for length, voxels in zip((240, 240, 180), size, strict=True))
    return phantoms(NAME, f"{_folder().name}/{'-'.join(map(str, size))}", cases=6, shape=size, spacing=spacing)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


def loader(files: Size, *, changes: Mapping[str, Any], cached: bool) -> DataLoader:
    """Returns the data loader of `train.yaml` on two scans, in order; without its cache each access reads the files."""
    given = {
        "dataset_dir": str(data_folder(files)),
        "pseudo_labels": None,
        "train::dataset::data": "$(@cases['training'] + @cases['validation'])[:2]",
        "train::dataset::num_workers": 1,
        "train::dataset::progress": False,
        "train::dataloader::sampler": None,
        **changes,
    }
    parser = config(BUNDLE, "train", changes=given)
    if not cached:
        data, transform = (parser.get_parsed_content(f"train::{key}") for key in ("dataset::data", "preprocessing"))
        parser["train::dataset"] = Dataset(data, transform)
    return parser.get_parsed_content("train::dataloader")


def random_transforms(patch: Size) -> Compose:
    """Returns what cuts and deforms one sample of a cached scan, with seeded randomness."""
    parser = config(BUNDLE, "train", changes={"patch_size": list(patch)})
    return Compose(parser.get_parsed_content("train::random_transforms")).set_random_state(0)


def annotator(files: Size, *, cases: int, device: torch.device, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the evaluator of `annotate.yaml` on so many scans, and the `Annotation`, which knows its files.

    The three teachers have seeded random weights.
    """
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    given = {
        "dataset_dir": str(data_folder(files)),
        "ckpt_dir": str(folder),
        "output_dir": str(folder / "annotated"),
        "device": device,
        "amp": False,
        "annotation::cases": f"$unlabelled_cases(@dataset_dir, sequences=@sequences)[:{cases}]",
        "handlers": ["@annotation"],
        **changes,
    }
    parser = config(BUNDLE, "inference", "ensemble", "annotate", changes=given)
    for step in parser["postprocessing::transforms"]:
        if isinstance(step, dict) and step["_target_"] == "SaveImaged":
            step["print_log"] = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for member in parser.get_parsed_content("ensemble").members:
            torch.save(member.network.state_dict(), member.weights)
    parser.get_parsed_content("load")
    annotation = parser.get_parsed_content("annotation")
    annotation.start()
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.logger.setLevel("WARNING")
    return evaluator, annotation
