"""Members from outside: any trained MONAI bundle teaches, whatever its grid, its normalisation and its classes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, ResampleToMatch
from monai.utils import convert_to_dst_type
from torch import nn

from .cases import InputError
from .resume import load_weights

__all__ = ["BundleMember"]

NO_PART = ("AsDiscrete", "CastToType", "FillHoles", "KeepLargest", "RemoveSmall", "Save")  # of soft predictions


class BundleMember(nn.Module):
    """A bundle with `network_def`, `preprocessing`, `inferer` and `postprocessing` in its inference config.

    The scan is read and prepared as that bundle does. Its post-processing is done as far as it is soft: transforms that
    discretise, clean or save are left out. What it gives on the scan's grid is resampled to the student's.

    Args:
        name: what messages call it.
        bundle: its folder, or a zip of it.
        channels: for each of our classes its output channels, whose probabilities are added; nothing for the class,
            usually the background, that gets what the others leave of 1.
        config: its inference config without suffix.
        weights: its state dict, in its folder.
        overrides: further ids of its config, as a command line would give them.
        device: where its network runs.

    Raises:
        InputError: when not exactly one class is without channels, or a channel is named twice.
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
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.name = name
        self.bundle = Path(bundle).absolute()
        self.channels = [list(group or ()) for group in channels]
        self.config = config
        self.weights = weights
        self.overrides = dict(overrides or {})
        self.device = torch.device(device)
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        named = [channel for group in self.channels for channel in group]
        if sum(not group for group in self.channels) > 1 or len(set(named)) < len(named):
            self._refuse(f"at most one class may be without channels, and no channel in two, got {self.channels}")

    def load(self, classes: int) -> None:
        """Reads the bundle's config and weights.

        Raises:
            InputError: when there is no such bundle, it needs packages that are not installed (they are named), its
                Python package is already loaded from elsewhere, its config lacks an id, the weights do not fit, or the
                map of channels has another number of classes.
        """
        if len(self.channels) != classes:
            self._refuse(f"channels must have one entry for each of {classes} classes, got {self.channels}")
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
            self._refuse(f"its {self.config} config has no {', '.join(missing)}")
        network, self.preprocessing, self.inferer, postprocessing = map(parser.get_parsed_content, needed)
        self.network = load_weights(network, root / self.weights).to(self.device).eval()
        self.postprocessing = _soft_part(postprocessing)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns class probabilities `(1, C, H, W, D)` for a scan `(1, 1, H, W, D)` that knows its file and its grid.

        Raises:
            InputError: when the bundle has fewer output channels than the map names.
        """
        target: MetaTensor = image[0]
        item = self.preprocessing({"image": target.meta["filename_or_obj"]})
        with torch.inference_mode():
            answer = self.inferer(item["image"][None].to(self.device), self.network)
        answer = answer[0] if isinstance(answer, (tuple, list)) else answer
        item["pred"] = convert_to_dst_type(answer[0].float(), item["image"])[0]
        found: MetaTensor = self.postprocessing(item)["pred"]
        if (highest := max((max(group) for group in self.channels if group), default=-1)) >= len(found):
            self._refuse(f"channels name output {highest}, it has {len(found)} outputs")
        onto = ResampleToMatch(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
        maps = torch.as_tensor(onto(found.to(target.device), target))
        classes = torch.stack([maps[group].sum(0) for group in self.channels])  # of no channel: 0
        if [] in self.channels:
            classes[self.channels.index([])] = 1 - classes.sum(0)
        return classes[None].clamp(0, 1)

    def identity(self) -> dict[str, str]:
        """Returns what tells these weights from others."""
        weights = (self._root() / self.weights).read_bytes()
        return {"name": self.name, "bundle": self.bundle.name, "sha256": hashlib.sha256(weights).hexdigest()}

    def _refuse(self, rule: str) -> None:
        raise InputError([("", f"member {self.name}", f"{self.bundle}: {rule}")])

    def _root(self) -> Path:
        """Returns the bundle's folder; a zip is unpacked for as long as the member lives."""
        folder = self.bundle
        if zipfile.is_zipfile(folder):
            if self._unpacked is None:
                self._unpacked = tempfile.TemporaryDirectory(prefix=f"{folder.stem}_")
                with zipfile.ZipFile(folder) as archive:
                    archive.extractall(self._unpacked.name)  # which keeps names inside the folder
            folder = Path(self._unpacked.name)
        found = [root for root in (folder, *folder.glob("*/")) if (root / "configs/metadata.json").is_file()]
        if not found:
            self._refuse("is neither a bundle's folder nor a zip of one (no configs/metadata.json)")
        return found[0]

    def _check_packages(self, root: Path) -> None:
        metadata = ConfigParser.load_config_file(root / "configs/metadata.json")
        missing = [name for name in metadata.get("required_packages_version", {}) if not _installed(name)]
        if missing:
            self._refuse(f"needs packages that are not installed: {', '.join(missing)}")
        for init in root.glob("*/__init__.py"):
            module = sys.modules.get(init.parent.name)
            if module is not None and Path(str(module.__file__)).resolve() != init.resolve():
                self._refuse(f"its package {init.parent.name} is already loaded from {module.__file__}")

    def _config_file(self, root: Path) -> Path:
        files = [root / f"configs/{self.config}.{suffix}" for suffix in ("json", "yaml", "yml")]
        found = [file for file in files if file.is_file()]
        if not found:
            self._refuse(f"has no configs/{self.config}.json or .yaml")
        return found[0]


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
