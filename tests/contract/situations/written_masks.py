"""Where masks go and what they are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np

from tests.conftest import NAMES
from tests.contract.situations import Invalid, Same, Scene, Situation

VNET, LACHINOV = "vnet_atrial_mri", "lachinov_distillation_brats_mri"


def dotted(scene: Scene) -> None:
    """A flat folder of scans that are named by numbers with dots, of which the first parts are the same."""
    for number, case in enumerate([*scene.cases["validation"], *scene.cases["training"]], start=1):
        shutil.move(case["image"], scene.data / f"1.2.840.{number}.nrrd")
        shutil.rmtree(Path(case["image"]).parent)


def of_dotted(scene: Scene, mask: Any) -> tuple[Path, Any]:
    """Every case has its whole name."""
    rows = (scene.folder / "eval/report.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == [f"1.2.840.{number}" for number in range(1, len(rows) + 1)]
    return scene.data / "1.2.840.1.nrrd", mask


def same_name(scene: Scene) -> None:
    """Two scans whose masks would be one file."""
    dotted(scene)
    first = scene.data / "1.2.840.1.nrrd"
    itk.imwrite(itk.imread(str(first)), str(first.with_suffix(".nii.gz")))


def listed(scene: Scene) -> None:
    """A datalist elsewhere leads to scans through `..` and by an absolute path."""
    folder = scene.data.with_name("lists")
    folder.mkdir()
    images = [Path(case["image"]) for case in [*scene.cases["validation"], *scene.cases["training"]]]
    places = [str(images[0]), *(str(Path("..", image.relative_to(scene.data.parent))) for image in images[1:])]
    records = [{"case": f"scan{number}", "image": place} for number, place in enumerate(places)]
    (folder / "list.json").write_text(json.dumps({"unlabelled": records}), encoding="utf-8")
    scene.options["dataset_dir"] = str(folder / "list.json")


def inside(scene: Scene, mask: Any) -> tuple[Path, Any]:
    """All masks are below the folder of results, named after their cases."""
    masks = list(scene.data.parent.rglob("scan?_tumour.*"))
    assert len(masks) == 5
    assert all(path.is_relative_to(scene.folder / "eval") for path in masks)
    return Path(scene.cases["validation"][0]["image"]).with_name("scan0.nii.gz"), mask


def one_slice(scene: Scene) -> None:
    """A scan of one slice, whose header has a qform alone."""
    path = scene.cases["validation"][0]["image"]
    voxels = np.asarray(nibabel.load(path).dataobj)[..., 2:3]
    header = nibabel.Nifti1Header()
    header.set_qform(np.diag([-4.0, -4.0, 16.0, 1.0]), code=1)
    nibabel.save(nibabel.Nifti1Image(voxels, None, header), path)


def of_one_slice(scene: Scene, _: Any) -> tuple[Path, Any]:
    """The mask is a volume with the same header."""
    scan = Path(scene.cases["validation"][0]["image"])
    (mask,) = map(nibabel.load, (scene.folder / "eval").rglob(f"{scan.name.removesuffix('.nii.gz')}_seg.nii.gz"))
    assert mask.shape == nibabel.load(scan).shape
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 0)
    np.testing.assert_array_equal(mask.header["pixdim"], nibabel.load(scan).header["pixdim"])
    return scan, np.asarray(mask.dataobj)


SITUATIONS = [
    Situation("names with dots", dotted, Same(of_dotted), bundles=[VNET]),
    Situation("two scans of one name", same_name, Invalid(["1.2.840.1", "is ambiguous"]), bundles=[VNET]),
    Situation("one slice", one_slice, Same(of_one_slice), bundles=NAMES[:1]),
    Situation("a datalist of scans elsewhere", listed, Same(inside), bundles=[LACHINOV]),
]
