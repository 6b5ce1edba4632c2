"""Corrupted test sets: labelled scans, each with one MRI artefact simulated by TorchIO, written as folders of scans.

A volume comes clipped to [0, 1] and resampled as the network gets it. Its centre of `patch_size` is cropped (or padded
with zeros), scaled to [0, 1] per slice, corrupted as `(1, z, y, x)` with voxels of unit size and scaled again; the rest
becomes 0. It is stored on that grid, not on the scan's own, and the label with it: the settings count voxels and planes
of k-space, and interpolating there and back takes 70 % of a spike away (measured at 1.56 to 1.79 mm).
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop, ScaleIntensity
from monai.utils import optional_import
from torch.utils.data import DataLoader
from tqdm import tqdm

from .artefacts import ARTEFACTS, check_artefacts, make_artefact
from .shared.files import atomic_write, write_text
from .shared.validation import Case, InputError

__all__ = ["CorruptedSets", "cases_of", "corrupt", "draw_seed"]

logger = logging.getLogger(__name__)

FILE_NAMES = {"image": "{}_img.nii.gz", "label": "{}_seg.nii.gz"}


def cases_of(splits: Mapping[str, Sequence[Case]], subset: str | None) -> list[Case]:
    """Returns the cases of one split, or of all without a `subset`.

    Raises:
        InputError: when there is no such split.
    """
    if subset is not None and subset not in splits:
        raise InputError([("", "subset", f"must be one of {', '.join(splits)}, got {subset}")])
    return [case for name, cases in splits.items() if subset in (None, name) for case in cases]


def draw_seed(corruption: str, patient: str, *, frame: str, draw: int) -> int:
    """Returns the seed of a volume, the CRC-32 of its place `<corruption>/<patient>_<draw>/<frame>`."""
    return zlib.crc32(f"{corruption}/{patient}_{draw}/{frame}".encode())


def corrupt(
    volume: MetaTensor, artefact: Any, *, patch_size: Sequence[int], seed: int
) -> tuple[MetaTensor, dict[str, Any]]:
    """Corrupts the centre of a volume.

    Args:
        volume: `(1, X, Y, Z)`, slices along Z, untouched.
        artefact: random transform of TorchIO.
        patch_size: size in x and y, voxels, of the centre that is corrupted; the rest becomes 0.
        seed: what the transform draws depends on this alone; torch's own state is left as it was.

    Returns:
        The corrupted volume, in [0, 1] per slice (constant slices are 0), and the parameters TorchIO drew.
    """
    torchio, _ = optional_import("torchio")
    crop = ResizeWithPadOrCrop((*patch_size, -1))
    scale = ScaleIntensity(0, 1, channel_wise=True)
    patch = crop(volume).clone()  # a crop is a view
    stack = scale(patch[0].permute(2, 1, 0).as_tensor())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subject = artefact(torchio.Subject(scan=torchio.ScalarImage(tensor=stack[None])))
    (applied,) = subject.history
    drawn = {name: np.asarray(getattr(applied, name)["scan"]).tolist() for name in applied.args_names}
    patch.copy_(scale(subject.scan.data[0]).permute(2, 1, 0))
    return crop.inverse(patch), drawn


class CorruptedSets:
    """Test sets `<output_dir>/<corruption>/<patient>_<draw>/{ED,ES}_{img,seg}.nii.gz`, each with a `manifest.json`.

    What an earlier run finished is kept, provided that its manifest tells the same settings and versions.

    Args:
        output_dir: folder of all sets.
        settings: arguments of TorchIO's transform, for each corruption; what is left out has TorchIO's default.
        corruptions: names of the sets to write.
        draws: how many corrupted versions of each volume a set holds.
        pixdim: in-plane spacing of the given volumes in mm, for the manifests.
        patch_size: size in x and y, voxels, of the corrupted centre.

    Raises:
        InputError: when a corruption or setting is unknown or outside its range, `draws` or `patch_size` is not
            positive, or `output_dir` holds sets made in another way.
    """

    def __init__(
        self,
        output_dir: str | Path,
        settings: Mapping[str, Mapping[str, Any]],
        *,
        corruptions: Sequence[str] = tuple(ARTEFACTS),
        draws: int = 3,
        pixdim: Sequence[float] = (1.36719, 1.36719),
        patch_size: Sequence[int] = (192, 192),
    ) -> None:
        check_artefacts(corruptions, settings)
        if min(draws, *patch_size) < 1:
            raise InputError([("", "draws, patch_size", f"must be 1 or more, got {draws} and {list(patch_size)}")])
        torchio, _ = optional_import("torchio")
        self.root = Path(output_dir).absolute()
        self.patch_size = tuple(patch_size)
        self.draws = draws
        self.artefacts = {name: make_artefact(name, settings.get(name, {})) for name in corruptions}
        versions = {module.__name__: str(module.__version__) for module in (torchio, torch, monai)}
        common = {"pixdim": list(pixdim), "patch_size": list(patch_size), "versions": versions}
        self.manifests = {
            name: self._resumed(name, {"corruption": name, "settings": dict(settings.get(name, {})), **common})
            for name in corruptions
        }

    def _resumed(self, name: str, made_by: dict[str, Any]) -> dict[str, Any]:
        path = self.root / name / "manifest.json"
        if not path.is_file():
            return {**made_by, "volumes": {}}
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError([("", str(path), f"is no valid JSON ({error})")]) from error
        made_by = json.loads(json.dumps(made_by))
        changed = [key for key in made_by if manifest.get(key) != made_by[key]]
        if changed:
            rule = f"the set was made with other {', '.join(changed)}: choose another output_dir, or remove it"
            raise InputError([("", str(path), rule)])
        return manifest

    def _files(self, name: str, case: Case, draw: int) -> dict[str, Path]:
        folder = self.root / name / f"{case['patient']}_{draw}"
        return {key: folder / file_name.format(case["frame"]) for key, file_name in FILE_NAMES.items()}

    def unfinished(self, cases: Iterable[Case]) -> list[dict[str, Any]]:
        """Returns the cases of which corrupted versions are missing, these under `missing` as `(corruption, draw)`.

        Args:
            cases: dicts with `patient` and `frame`, and `image` and `label` when this is called as a transform.
        """
        listed = []
        for case in cases:
            missing = [
                (name, draw)
                for name, manifest in self.manifests.items()
                for draw in range(self.draws)
                if f"{case['patient']}_{draw}/{case['frame']}" not in manifest["volumes"]
                or not all(path.is_file() for path in self._files(name, case, draw).values())
            ]
            listed += [{**case, "missing": missing}] if missing else []
        return listed

    def __call__(self, case: Case) -> list[tuple[str, str, dict[str, Any]]]:
        """Writes the missing versions of a loaded case.

        Args:
            case: what `unfinished` listed, with `image` and `label` as `(1, X, Y, Z)` on one grid.

        Returns:
            For each version the corruption, the key of its manifest entry, and the entry: seed and drawn parameters.
        """
        written = []
        patient, frame = case["patient"], case["frame"]
        for name, draw in case["missing"]:
            seed = draw_seed(name, patient, frame=frame, draw=draw)
            image, drawn = corrupt(case["image"], self.artefacts[name], patch_size=self.patch_size, seed=seed)
            files = self._files(name, case, draw)
            _save(image[0].numpy(), files["image"], affine=image.affine.numpy(), dtype=np.uint16)
            label = case["label"]
            _save(label[0].numpy().astype(np.uint8), files["label"], affine=label.affine.numpy(), dtype=np.uint8)
            written.append((name, f"{patient}_{draw}/{frame}", {"seed": seed, "parameters": drawn}))
        return written

    def write(self, loader: DataLoader[Any]) -> None:
        """Writes what is missing, and after each case the manifests.

        Args:
            loader: gives what calling this object returned, one case at a time.
        """
        total = sum(len(case["missing"]) for case in loader.dataset.data)  # type: ignore[attr-defined,misc]
        with tqdm(desc="Corrupting", total=total, unit="volume") as bar:
            for written in loader:
                for name, key, entry in written:
                    self.manifests[name]["volumes"][key] = entry
                for name in {name for name, *_ in written}:
                    self._save_manifest(name)
                bar.update(len(written))
        logger.info("Corrupted test sets %s in %s", ", ".join(self.manifests), self.root)

    def _save_manifest(self, name: str) -> None:
        path = self.root / name / "manifest.json"
        manifest = self.manifests[name]
        ordered = {**manifest, "volumes": dict(sorted(manifest["volumes"].items()))}
        write_text(path, json.dumps(ordered, indent=1) + "\n")


def _save(array: np.ndarray[Any, Any], path: Path, *, affine: np.ndarray[Any, Any], dtype: type[np.integer]) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_data_dtype(dtype)  # nibabel finds the slope for floating-point arrays
    image.header.set_xyzt_units("mm")
    with atomic_write(path) as partial:
        nib.save(image, partial)
