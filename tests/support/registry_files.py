"""A complete bundle small enough to be released, damaged and downloaded many times."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.registry.build import build

NETWORK = """
import torch

class Net(torch.nn.Conv3d):
    def __init__(self, out_channels):
        super().__init__(1, out_channels, 1)
"""
CONFIG = "network_def: {_target_: release_net.Net, out_channels: 2}\nrun: []\n"
TENSOR = {
    "type": "image",
    "format": "magnitude",
    "spatial_shape": [4, 4, 4],
    "dtype": "float32",
    "value_range": [],
}
METADATA: dict[str, Any] = {
    "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "first release"},
    "name": "Toy",
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {},
    "task": "none",
    "description": "One convolution",
    "authors": "nobody",
    "copyright": "nobody",
    "network_data_format": {
        "inputs": {"image": {**TENSOR, "num_channels": 1}},
        "outputs": {"pred": {**TENSOR, "num_channels": 2}},
    },
}


def track(folder: Path) -> Path:
    """Puts what lies in the folder above under git, in a repository of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    (folder.parent / ".gitignore").write_text("__pycache__/\nmodels/\neval/\n")
    for command in (["init", "-q"], ["add", "-A", "."]):
        subprocess.run(["git", "-C", str(folder.parent), *command], check=True, env=environment)
    return folder


def toy_bundle(parent: Path, version: str = "0.1.0", **metadata: Any) -> Path:
    """A bundle `toy` with package, weights and all that a release needs."""
    torch.manual_seed(0)
    folder = parent / "toy"
    changes = {"version": version, "changelog": {version: f"release {version}"}, **metadata}
    files = {
        "LICENSE": "Apache License, Version 2.0\n",
        "configs/metadata.json": json.dumps(METADATA | changes),
        "configs/inference.yaml": CONFIG,
        "configs/train.yaml": CONFIG,
        "docs/README.md": f"# Toy\n\nVersion {version}.\n",
        "docs/data_license.txt": "no data\n",
        "release_net/__init__.py": NETWORK,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "models").mkdir()
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), folder / "models/model.pt")
    return track(folder)


def toy_registry(parent: Path, version: str = "0.1.0", **options: Any) -> Path:
    """A registry that holds one version of the bundle `toy`."""
    return build(output=str(parent / "dist"), bundles=str(toy_bundle(parent / version, version)), **options)


def rewrite(
    dist: Path, change: Callable[[dict[str, bytes]], dict[Any, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Replaces the members of toy's zip, and the sums as an attacker would who can write to the registry."""
    path = dist / "toy_v0.1.0.zip"
    with zipfile.ZipFile(path) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return resign(dist)


def resign(dist: Path) -> Path:
    """Makes the sums those of toy's zip as it is now."""
    content = (dist / "toy_v0.1.0.zip").read_bytes()
    (dist / "toy_v0.1.0.zip.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  toy_v0.1.0.zip\n")
    rows = json.loads((dist / "model_info.json").read_text())
    rows["toy_v0.1.0"]["checksum"] = hashlib.sha1(content).hexdigest()
    (dist / "model_info.json").write_text(json.dumps(rows))
    return dist


def copy(dist: Path, target: Path) -> Path:
    """A registry of one's own to damage."""
    return Path(shutil.copytree(dist, target))
