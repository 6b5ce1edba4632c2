"""Scans, weights and config parts of the workloads, made when first asked for and shared by all variants."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from scipy import ndimage
from torch import nn
from torch.nn.functional import one_hot

from ensemble_kd.ensemble import Ensemble
from ensemble_kd.sampling import PatchBatches, cut
from tools import REPO
from tools.benchmark.variants import config
from tools.convert import load_key_map
from tools.data.phantoms import Volume
from tools.per_bundle.ensemble_kd_kits_ct.phantoms import case

NAME = Path(__file__).parent.name
BUNDLE = REPO / "bundles" / NAME
FIELD = (384.0, 288.0, 192.0)  # mm
SCAN = (130, 130, 80)  # where patches are cut

Size = tuple[int, ...]
Tensors = dict[str, torch.Tensor]


class Member(NamedTuple):
    """A network of the bundle: overlay of `train.yaml`, role in `keys.yaml`, classes, margin."""

    overlay: tuple[str, ...]
    role: str
    classes: int = 3
    margin: int = 0


MEMBERS = {
    "dilated35": Member(("member_dilated",), "dilated_cnn", margin=17),
    "dilated131": Member(("locator",), "dilated_cnn_131", classes=2, margin=65),
    "resnet3d": Member(("member_resnet",), "resnet"),
    "unet3d": Member(("member_unet",), "unet"),
}
IN_ENSEMBLE = {"dilated": "dilated35", "resnet": "resnet3d", "unet": "unet3d"}  # by id in ensemble.yaml


@functools.cache
def scan(size: Size, classes: int = 3, *, number: int = 0) -> Tensors:
    """Returns a patient: `image` in HU and `label`, both `(1, *size)`, and `soft` `(classes, *size)`, blurred."""
    spacing = tuple(length / voxels for length, voxels in zip(FIELD, size, strict=True))
    volumes: list[Volume] = list(case(np.random.default_rng(number), shape=size, spacing=spacing).values())
    image, label = (torch.from_numpy(volume.voxels)[None] for volume in volumes)
    label = label.clamp(max=classes - 1)
    masks = one_hot(label[0].long(), classes).movedim(-1, 0).float().numpy()
    soft = torch.from_numpy(np.stack([ndimage.gaussian_filter(mask, 1.0) for mask in masks]))
    return {"image": image.float(), "label": label, "soft": soft / soft.sum(0)}


@functools.cache
def batch(size: Size, member: str = "dilated35") -> Tensors:
    """Returns a batch of `size` (B and the labels' edges) as the network trains on it: `image`, `label` and `soft`."""
    classes, margin = MEMBERS[member].classes, MEMBERS[member].margin
    patches = PatchBatches(
        [scan(SCAN, classes)],
        batch_size=size[0],
        length=1,
        num_classes=classes,
        window=size[1],
        margin=margin,
        axes=(0, 1, 2) if len(size) == 3 else None,
        ratios=[5] * classes,
        rotation=0,
    )
    return patches.set_random_state(0)[0]


@functools.cache
def network(member: str = "dilated35") -> nn.Module:
    """Returns a network with seeded weights; copy it before changing anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = _config("train", member).get_parsed_content("network_def")
    return made


def reference_names(member: str) -> Tensors:
    """Returns the network's state dict under the names of the reference."""
    state = network(member).state_dict()
    return load_key_map(NAME, MEMBERS[member].role, state=state).to_reference(state)


def trainer(
    member: str, size: Size, *, device: torch.device, amp: bool, learning_rate: float
) -> tuple[Any, list[nn.Parameter]]:
    """Returns the trainer of the network as a student, an epoch of which is one step on `batch`, and its weights.

    There is no dropout. The weights are without the biases, which mean nothing ahead of a normalisation, and sorted by
    their names in the reference.
    """
    student = copy.deepcopy(network(member))
    for module in student.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    changes = {
        "device": device,
        "amp": amp and device.type == "cuda",
        "max_epochs": 1,
        "learning_rate": learning_rate,
        "network_def": student,
        "train::dataloader": [{key: value.to(device) for key, value in batch(size, member).items()}],
        "train::key_metric": None,
        "train::handlers": [],
        "averaged": None,
    }
    made = _config("train", member, **changes).get_parsed_content("train::trainer")
    made.logger.setLevel("WARNING")
    names = load_key_map(NAME, MEMBERS[member].role, state=student.state_dict()).names
    weights = {names[name]: value for name, value in student.named_parameters() if name.endswith("weight")}
    return made, [weights[name] for name in sorted(weights)]


def predicting(member: str, device: torch.device) -> tuple[nn.Module, Inferer]:
    """Returns the network, on the device, and what predicts whole scans with it."""
    parser = _config("train", member, device=device, network_def=copy.deepcopy(network(member)))
    return parser.get_parsed_content("network").eval(), parser.get_parsed_content("predictor")


def ensemble(device: torch.device, *, tile: int, shifts: int) -> Ensemble:
    """Returns the ensemble of `ensemble.yaml` with the weights of `network`."""
    changes: dict[str, Any] = {
        f"kinds::{key}::network": copy.deepcopy(network(member)) for key, member in IN_ENSEMBLE.items()
    }
    changes |= {"device": device, "tile": tile, "shifts": shifts, "names": list(IN_ENSEMBLE)}
    parser = config(BUNDLE, "inference", "ensemble", changes=changes)
    made: Ensemble = parser.get_parsed_content("network").eval()
    return made


def sampler(member: str, size: Size, *, batch_size: int) -> PatchBatches:
    """Returns the batches that the network trains on, not turned, cut from two scans of `size` (x, y, z)."""
    scans = [scan(size, MEMBERS[member].classes, number=number) for number in range(2)]
    cases = [{key: item[key] for key in ("image", "label")} for item in scans]
    changes = {"batch_size": batch_size, "epoch_length": 2**31, "train::dataset": cases, "full_background": 0}
    changes |= {"rotation": 0.0, "scaling": None, "mirror": [], "augmentation": []}  # others may have none of it
    made: PatchBatches = _config("train", member, **changes).get_parsed_content("train::patches")
    return made.set_random_state(0)


def one_patch(patches: PatchBatches) -> torch.Tensor:
    """Returns the image `(1, h, w)` around a window: the middle one of those across axis 0 that show class 1."""
    case_index, _, table = patches.tables[1, False][0]
    first, *others = table[len(table) // 2]
    edge = patches.window + 2 * patches.margin
    target = np.zeros((1, 1, edge, edge), np.float32)
    corner = [first, *(place - patches.margin for place in others)]
    cut(patches.data[case_index]["image"].numpy(), target, corner=corner)
    return torch.from_numpy(target[:, 0])


def _config(stem: str, member: str, **changes: Any) -> ConfigParser:
    return config(BUNDLE, stem, *MEMBERS[member].overlay, changes=changes)
