"""NRRD headers that lead elsewhere, or do not say where the voxels lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np

from tests.contract.situations import Invalid, Scene, Situation
from tests.support.runs import scan_files

ONE = ["vnet_atrial_mri"]


def field(name: str, value: str | None) -> Callable[[Scene], None]:
    """Replaces or adds a field of the header of the first validation case's scan; `None` removes it."""

    def make(scene: Scene) -> None:
        path = Path(scene.cases["validation"][0]["image"])
        header, _, data = path.read_bytes().partition(b"\n\n")
        lines = [line for line in header.split(b"\n") if not line.startswith(name.encode() + b":")]
        lines += [] if value is None else [f"{name}: {value}".encode()]
        path.write_bytes(b"\n".join(lines) + b"\n\n" + data)

    return make


def invalid(name: str, value: str | None, rule: str) -> Situation:
    title = f"{name} is {'missing' if value is None else value.replace('/', '_')}"
    return Situation(title, field(name, value), Invalid(["{case}", "{file}", rule]), bundles=ONE)


def stack(scene: Scene) -> None:
    """A datalist of a 4D file, whose grid MONAI and ITK read in different ways."""
    images = [nibabel.load(file) for file in scan_files(scene.bundle, scene.cases["validation"][0])]
    header = {"space": "left-posterior-superior", "kinds": ["domain"] * 3 + ["list"]}
    directions = [*(-4 * np.eye(3)), np.full(3, np.nan)]
    voxels = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    nrrd.write(str(scene.data / "s.nrrd"), voxels, header | {"space directions": np.array(directions)})
    scene.options["dataset_dir"] = str(scene.data / "list.json")
    record = {"case": "s", "image": "s.nrrd"}
    Path(scene.options["dataset_dir"]).write_text(json.dumps({"unlabelled": [record]}), encoding="utf-8")


SITUATIONS = [
    Situation(
        "a stack of sequences",
        stack,
        Invalid(["case s: ", "s.nrrd: image must be a 3D volume"]),
        bundles=["lachinov_distillation_brats_mri"],
    ),
    invalid("data file", "/dev/zero", "its voxels are in another file"),
    invalid("space directions", None, "does not say how it lies in the patient"),
    invalid("space units", '"cm" "cm" "cm"', "its unit must be mm"),
]
