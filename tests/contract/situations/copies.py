"""Several copies of a bundle on one machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import config_files, package
from tests.contract.situations import Invalid, Same, Scene, Situation
from tools import REPO

ONE = ["hadnet_brats_mri"]


def of_a_copy(scene: Scene) -> None:
    """The config of another copy, in a process that has used this one."""
    copy = scene.folder / "copy"
    for name in ("configs", package(scene.bundle)):
        shutil.copytree(REPO / "bundles" / scene.bundle / name, copy / name)
    scene.options["config_file"] = str(copy / "configs/inference.yaml")


def by_a_link(scene: Scene) -> None:
    """The bundle under another name."""
    link = scene.folder / "link"
    link.symlink_to(REPO / "bundles" / scene.bundle)
    scene.options["config_file"] = [
        str(link / "configs" / Path(f).name) for f in config_files(scene.bundle, "inference")
    ]


def of_another_bundle(scene: Scene) -> None:
    """Metadata that says something else of voxels, channels and labels."""
    scene.options["meta_file"] = str(REPO / "bundles/vnet_atrial_mri/configs/metadata.json")


SITUATIONS = [
    Situation(
        "config of another copy", of_a_copy, Invalid(["copy/configs/inference.yaml", "code that runs"]), bundles=ONE
    ),
    Situation("config by a link", by_a_link, Same(), bundles=ONE),
    Situation(
        "metadata of another bundle", of_another_bundle, Invalid(["vnet_atrial_mri/configs/metadata.json"]), bundles=ONE
    ),
]
