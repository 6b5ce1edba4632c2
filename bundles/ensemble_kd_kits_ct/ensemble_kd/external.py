"""Members from outside: any trained MONAI bundle teaches, whatever its grid, its normalisation and its classes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import BorderPad, Compose, Invertd, ResampleToMatch
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import nn

from .shared.validation import InputError
from .shared.weights import load_weights

__all__ = ["BundleMember"]

NO_PART = ("AsDiscrete", "CastToType", "FillHoles", "KeepLargest", "RemoveSmall", "Save")  # of soft predictions


class BundleMember(nn.Module):
    """A bundle with `network_def`, `preprocessing`, `inferer` and `postprocessing` in its inference config.

    The scan is read and prepared as that bundle does. Its post-processing is done as far as it is soft: transforms that
    discretise, clean or save are left out. What it gives on the scan's grid is resampled to the student's.

    The classes sum to 1: what the channels leave of 1, for example where the bundle saw nothing of the scan, goes to
    the class without channels, or to the first if there is none; channels that sum to more are divided by their sum.

    Args:
        name: what messages call it.
        bundle: its folder, or a zip of it.
        channels: for each of our classes its output channels, whose probabilities are added; nothing for the class,
            usually the background, that gets what the others leave of 1.
        config: its inference config without suffix.
        weights: its state dict, in its folder.
        overrides: further ids of its config, as a command line would give them.
        device: where its network runs; by default on a GPU if there is one.

    Raises:
        InputError: when more than one class is without channels, or a channel is named twice.
    """

    def __init__(
        self,
        name: str,
        bundle: str,
        *,
        channels: Sequence[Sequence[int]],
        config: str = "inference",
        weights: str = "models/model.pt",
        overrides: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.bundle = Path(bundle).absolute()
        self.channels = [list(group or ()) for group in channels]
        self.config = config
        self.weights = weights
        self.overrides = dict(overrides or {})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._check_channels()

    def _check_channels(self) -> None:
        named = [channel for group in self.channels for channel in group]
        if sum(not group for group in self.channels) > 1 or len(set(named)) < len(named):
            self._reject(f"at most one class may be without channels, and no channel in two, got {self.channels}")

    def load(self, classes: int) -> None:
        """Reads the bundle's config and weights.

        Raises:
            InputError: when there is no such bundle, it needs packages that are not installed (they are named), its
                Python package is already loaded from elsewhere, its config lacks an id, the weights do not fit, or the
                map of channels has another number of classes.
        """
        if len(self.channels) != classes:
            self._reject(f"channels must have one entry for each of {classes} classes, got {self.channels}")
        root = self._root()
        self._check_packages(root)
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        parser = ConfigParser()
        parser.read_config(self._config_file(root))
        parser.read_meta(root / "configs/metadata.json")
        parser.update({"bundle_root": str(root), "device": self.device} | self.overrides)
        needed = ("network_def", "preprocessing", "inferer", "postprocessing")
        if missing := [key for key in needed if key not in parser]:
            self._reject(f"its {self.config} config has no {', '.join(missing)}")
        network, self.preprocessing, self.inferer, postprocessing = map(parser.get_parsed_content, needed)
        self.network = load_weights(network, root / self.weights).to(self.device).eval()
        self.postprocessing = _soft_part(postprocessing)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns class probabilities `(1, C, H, W, D)` for a scan `(1, 1, H, W, D)` that knows its file and its grid.

        Raises:
            InputError: when the bundle has fewer output channels than the map names, or what is left of its
                post-processing makes no probabilities of them.
        """
        target: MetaTensor = image[0]
        item = self.preprocessing({"image": target.meta["filename_or_obj"]})
        with torch.inference_mode():
            # An ensemble that was moved to a device has taken the network along.
            answer = self.inferer(item["image"][None].to(self.device), self.network.to(self.device))
        answer = answer[0] if isinstance(answer, (tuple, list)) else answer
        item["pred"] = convert_to_dst_type(answer[0].float(), item["image"])[0]
        found: MetaTensor = self.postprocessing(item)["pred"]
        if (last := max((max(group) for group in self.channels if group), default=-1)) >= len(found):
            self._reject(f"channels name output {last}, it has {len(found)} outputs")
        lowest, highest = float(found.min()), float(found.max())
        if not -1e-3 <= lowest <= highest <= 1 + 1e-3:
            rule = f"gives {lowest:.3g} to {highest:.3g}, no probabilities: its post-processing has no activation"
            self._reject(rule)
        # The student's outermost voxels may reach beyond the scan: its rim goes on for as much as one of them.
        rim = BorderPad(math.ceil(float(target.pixdim.max() / found.pixdim.min())), mode="replicate")
        onto = ResampleToMatch(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
        maps = onto(rim(found.to(target.device)), target)
        return self._classes(convert_to_tensor(maps, track_meta=False).clamp(0, 1))[None]

    def _classes(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns class probabilities `(C, H, W, D)` of the bundle's channels."""
        classes = torch.stack([maps[group].sum(0) for group in self.channels])  # of no channel: 0
        classes = classes / classes.sum(0).clamp(min=1)
        classes[self.channels.index([]) if [] in self.channels else 0] += (1 - classes.sum(0)).clamp(min=0)
        return classes

    def identity(self) -> dict[str, str]:
        """Returns what tells these weights from others."""
        weights = (self._root() / self.weights).read_bytes()
        settings = str([self.channels, self.config, self.overrides])
        sha256 = hashlib.sha256(weights).hexdigest()
        return {"name": self.name, "bundle": self.bundle.name, "sha256": sha256, "settings": settings}

    def _reject(self, rule: str) -> None:
        raise InputError([("", f"member {self.name}", f"{self.bundle}: {rule}")])

    def _root(self) -> Path:
        """Returns the bundle's folder; of a zip, that in which it lies unpacked."""
        folder = self.bundle
        if zipfile.is_zipfile(folder):
            folder = Path(_unpacked(folder, folder.stat().st_mtime_ns).name)
        found = [root for root in (folder, *folder.glob("*/")) if (root / "configs/metadata.json").is_file()]
        if not found or (len(found) > 1 and found[0] != folder):
            self._reject("is neither a bundle's folder nor a zip of one (no configs/metadata.json, or several)")
        return found[0]

    def _check_packages(self, root: Path) -> None:
        metadata = ConfigParser.load_config_file(root / "configs/metadata.json")
        missing = [name for name in metadata.get("required_packages_version", {}) if not _installed(name)]
        if missing:
            self._reject(f"needs packages that are not installed: {', '.join(missing)}")
        for init in root.glob("*/__init__.py"):
            module = sys.modules.get(init.parent.name)
            if module is not None and Path(str(module.__file__)).resolve() != init.resolve():
                self._reject(f"its package {init.parent.name} is already loaded from {module.__file__}")

    def _config_file(self, root: Path) -> Path:
        files = [root / f"configs/{self.config}.{suffix}" for suffix in ("json", "yaml", "yml")]
        found = [file for file in files if file.is_file()]
        if not found:
            self._reject(f"has no configs/{self.config}.json or .yaml")
        return found[0]


@cache
def _unpacked(file: Path, modified: int) -> tempfile.TemporaryDirectory[str]:
    """Unpacks a zip until the program ends: members that share it share its Python package, too."""
    folder = tempfile.TemporaryDirectory(prefix=f"{file.stem}_{modified}_")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder.name)  # which keeps names inside the folder
    return folder


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def _soft_part(postprocessing: Compose) -> Compose:
    """Returns the transforms that keep predictions soft, with linear interpolation back to the scan's grid."""
    kept = [step for step in postprocessing.transforms if not type(step).__name__.startswith(NO_PART)]
    for step in kept:
        if isinstance(step, Invertd):
            step.nearest_interp = (False,) * len(step.keys)
    return Compose(kept)
