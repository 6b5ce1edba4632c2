"""Small bundles as members of an ensemble, and a scan for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirst, LoadImage
from scipy import ndimage
from torch import nn

from ensemble_kd.external import BundleMember

SHAPE = (26, 22, 14)
UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


def make_scan(path: Path) -> Path:
    """Writes an oblique, left-handed scan of anisotropic voxels; returns its path."""
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (-1.5, 1.25, 3.0), (12, -40, 5)
    volume = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.5).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(1000 * volume, affine), path)
    return path


def own_grid(scan: Path, *more: Any) -> torch.Tensor:
    """The scan as the engine hands it to the ensemble, `(1, 1, H, W, D)`, on its own grid or after more transforms."""
    (batch,) = DataLoader(Dataset([scan], Compose([LoadImage(), EnsureChannelFirst(), *more])), batch_size=1)
    return batch


def write(folder: Path, *, network: nn.Module | None = None, **config: Any) -> Path:
    """A bundle of a plain MONAI U-Net of three classes, without a package, with JSON as in released archives."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    steps = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    steps.append({"_target_": "ScaleIntensityd", "keys": "image"})
    invert = {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing"}
    content = {
        "network_def": {"_target_": "UNet", **UNET},
        "preprocessing": {"_target_": "Compose", "transforms": [*steps, *config.pop("further", [])]},
        "inferer": {"_target_": "SimpleInferer"},
        "activation": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        "postprocessing": {"_target_": "Compose", "transforms": ["@activation", invert, "@discrete"]},
        "discrete": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    }
    (folder / "configs/inference.json").write_text(json.dumps(content | config))
    (folder / "configs/metadata.json").write_text(json.dumps({"required_packages_version": {"nibabel": "5.0"}}))
    torch.manual_seed(1)
    torch.save((network or UNet(**UNET)).state_dict(), folder / "models/model.pt")
    return folder


def pointwise(folder: Path, *biases: float, **config: Any) -> Path:
    """A bundle whose logits are its biases everywhere; with a sigmoid unless the config says otherwise."""
    network = nn.Conv3d(1, len(biases), 1)
    nn.init.zeros_(network.weight)
    network.bias = nn.Parameter(torch.tensor(biases))
    size = {"in_channels": 1, "out_channels": len(biases), "kernel_size": 1}
    given = {"activation": {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, **config}
    return write(folder, network=network, network_def={"_target_": "torch.nn.Conv3d", **size}, **given)


def member(bundle: Path, channels: Sequence[Sequence[int]], *, load: bool = True, **options: Any) -> BundleMember:
    made = BundleMember("x", str(bundle), channels=channels, **options)
    if load:
        made.load(len(channels))
    return made
