"""Headers that do not say where the voxels lie in the patient, or that two readers understand in two ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.contract.situations import Invalid, Scene, Situation

Change = Callable[[Any], None]
ONE = ["hadnet_brats_mri"]  # what decides is the same in all


def tilt(header: Any) -> None:
    affine = header.get_best_affine()
    affine[1, 2] += affine[2, 2] * np.tan(np.radians(18))
    header.set_sform(affine, 1)
    header.set_qform(None, 0)


def metres(header: Any) -> None:
    for form in (header.get_sform(), header.get_qform()):
        form[:3] /= 1000
        header.set_sform(form, 1)
        header.set_qform(form, 1)


def two_places(header: Any) -> None:
    affine = header.get_best_affine()
    header.set_sform(affine, 1)
    affine[0, 3] += 30
    header.set_qform(affine, 1)


def nowhere(header: Any) -> None:
    header["qform_code"] = header["sform_code"] = 0


def in_metres(header: Any) -> None:
    header.set_xyzt_units("meter")


def with_header(change: Change, key: str = "image") -> Callable[[Scene], None]:
    """Replaces the header of a NIfTI file of the first validation case, voxels as they were."""

    def make(scene: Scene) -> None:
        path = Path(scene.cases["validation"][0][key])
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        change(image.header)
        nibabel.save(type(image)(voxels, None, image.header), path)

    return make


def shifted(header: Any) -> None:
    """Each element of the affine by less than 0.01, the last corner by millimetres."""
    affine = header.get_best_affine()
    affine[:3, :3] += 0.0095
    header.set_sform(affine, 1)
    header.set_qform(None, 0)


SITUATIONS = [
    Situation(
        "a gantry was tilted", with_header(tilt), Invalid(["{case}", "{file}", "sheared by 18 deg"]), bundles=ONE
    ),
    Situation(
        "voxels are given in metres",
        with_header(metres),
        Invalid(["{case}", "{file}", "has voxels of 0.00"]),
        bundles=ONE,
    ),
    Situation("a header says metres", with_header(in_metres), Invalid(["{case}", "{file}", "unit metre"]), bundles=ONE),
    Situation(
        "qform and sform differ",
        with_header(two_places),
        Invalid(["{case}", "{file}", "lies at two places"]),
        bundles=ONE,
    ),
    Situation(
        "there is neither qform nor sform",
        with_header(nowhere),
        Invalid(["{case}", "{file}", "does not say how it lies in the patient"]),
        bundles=[*ONE, "cooperative_training_acdc_mri"],
    ),
    Situation(
        "a label's corner is off",
        with_header(shifted, "label"),
        Invalid(["{case}", "label"]),
        bundles=ONE,
        commands=["evaluate"],
    ),
]
