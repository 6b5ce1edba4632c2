"""What clients send as scans and labels: looked at before it is read, and read before it is stored."""

from __future__ import annotations

import copy
import importlib
import math
import shutil
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import SimpleITK
import torch
from fastapi import HTTPException
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from .values import ENDINGS, is_name

__all__ = ["check_label", "check_new_name", "check_scan", "check_size", "check_weights", "copy_whole", "label_values"]
__all__ += ["remove_others"]

LARGEST_VOLUME = 2**30  # voxels, all channels
_GOOD: set[tuple[str, int]] = set()  # files of weights that were checked, and when they were written


def label_values(config: object) -> Iterator[set[int]]:
    """The sets of values that the checks of a training allow label maps, from all of its config."""
    if isinstance(config, Mapping):
        named = config.get("label_values")
        yield from map(set, named if isinstance(named, list) else ())
    for part in config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ():
        yield from label_values(part)


def check_size(file: str, *, what: str, voxels: int = LARGEST_VOLUME) -> None:
    """Reads the header of a volume.

    Args:
        file: the volume.
        what: what it is, for messages.
        voxels: the largest number that it may have.

    Raises:
        HTTPException: 400, it is of no known kind, has no readable header, or more than `voxels`.
    """
    if not file.endswith(ENDINGS):
        raise HTTPException(400, f"the {what} is not stored, its name must end in {', '.join(ENDINGS)}")
    reader: Any = SimpleITK.ImageFileReader()  # type: ignore[no-untyped-call]
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise HTTPException(400, f"the {what} cannot be read: {str(error).splitlines()[-1]}") from error
    found = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    if found > voxels:
        raise HTTPException(400, f"the {what} is not stored, it has {found:,} voxels, more than {voxels:,}")


def check_label(label: str, image: str, *, values: Collection[set[int]]) -> None:
    """Compares a label map with the scan that it is for.

    Args:
        label: file of the label map.
        image: file of the scan, or folder of a DICOM series.
        values: sets of values, of one of which a label map may have a part.

    Raises:
        HTTPException: 400, it is no readable NIfTI or NRRD file, the grids differ, or the values are not those of one
            of `values`.
    """
    read = LoadImage(image_only=True)
    check_size(label, what="label")
    scan = read(image)
    check_size(label, what="label", voxels=math.prod(scan.shape[:3]))
    try:
        mask = read(label)
    except Exception as error:
        raise HTTPException(status_code=400, detail=f"the label cannot be read: {error}") from error
    problem, found = "", {*torch.unique(mask.as_tensor()).tolist()}
    if mask.shape != scan.shape[:3]:
        problem = f"shape {[*mask.shape]} differs from the image's, {[*scan.shape[:3]]}"
    elif not torch.allclose(mask.affine.double(), scan.affine.double(), rtol=0, atol=1e-2):
        problem = "its affine differs from the image's: it is on another grid"
    elif not any(found <= allowed for allowed in values):
        text = " or ".join(sorted({str(sorted(allowed)) for allowed in values}))
        problem = f"label values must be among {text}, found {sorted(found)[:10]}"
    if problem:
        raise HTTPException(status_code=400, detail=f"the label is not stored, {problem}")


def check_scan(folder: Path, image: str) -> None:
    """Runs the checks of a bundle's inference on one scan, as its command line does; MONAI Label knows none.

    Raises:
        InputError: of the bundle, what is wrong with the scan.
    """
    config = next(path for ending in ("json", "yaml") if (path := folder / f"configs/inference.{ending}").is_file())
    parser = ConfigParser()
    parser.read_config(config)
    parser.update({"bundle_root": str(folder), "dataset_dir": image, "device": "cpu"})
    for name in [key for key in parser.config if key.startswith("check_")]:
        parser.get_parsed_content(name)


def check_weights(folder: Path, network: torch.nn.Module, *, name: str | list[str] | None) -> None:
    """Runs a bundle's own checks of weights, as its command line does; MONAI Label takes what `torch.load` returns.

    Args:
        folder: the bundle.
        network: what they are for; it stays as it is.
        name: the file, or a list that begins with it; none: `model.pt`.

    Raises:
        InputError: of the bundle, what is wrong with the weights.
    """
    file = folder / "models" / ((name[0] if isinstance(name, list) else name) or "model.pt")
    key = (str(file), file.stat().st_mtime_ns if file.is_file() else 0)
    if key not in _GOOD and (modules := [*folder.glob("*/weights.py")]):
        sys.path.insert(0, str(folder))
        try:
            module = importlib.import_module(f"{modules[0].parent.name}.weights")
        finally:
            sys.path.remove(str(folder))
        module.load_weights(copy.deepcopy(network), file)
        _GOOD.add(key)


def copy_whole(source: str, target: str) -> None:
    """Copies a file so that `target` holds the old one or the new one, whenever the server dies or the disk is full."""
    partial = Path(target).with_name(f".partial-{uuid4().hex}")  # of an ending that the store does not look for
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def check_new_name(name: str, present: Iterable[str]) -> None:
    """Rejects an id for a new scan that is none, or that of one there, on any system.

    Raises:
        HTTPException: 400.
    """

    def key(text: str) -> str:
        return unicodedata.normalize("NFKC", text).casefold()

    if not is_name(name):
        raise HTTPException(400, f"{name!r} is no name for a scan")
    if key(name) in map(key, present):
        raise HTTPException(400, f"there is a scan {name} already, it stays as it is")


def remove_others(folder: Path, name: str, *, kept: str) -> None:
    """Removes the files of an older label under the other endings, which a restart of the server would find."""
    for ending in ENDINGS:
        if not kept.endswith(ending) or (ending == ".nii" and kept.endswith(".nii.gz")):
            (folder / f"{name}{ending}").unlink(missing_ok=True)
