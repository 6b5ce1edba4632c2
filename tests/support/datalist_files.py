"""Small data sets of three sources, with and without labels, and the datalist of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lachinov_distillation.make_datalist import make_datalist
from tests.bundles.hadnet.files import write, write_case

Volume = NDArray[Any]
MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
SEED = 19
# What a data set is divided into.
SPLIT = {
    "training": ["B0", "B1", "B3", "B5", "BRATS_100", "BRATS_101"],
    "validation": ["B2", "B4"],
    "unlabelled": ["BRATS_200", "BRATS_201"],
}


def patient(seed: int, shape: tuple[int, int, int] = (40, 48, 36)) -> Volume:
    """A brain with structures of its own, int16, 0 in a margin of four voxels."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.int16)
    inner = tuple(slice(4, size - 4) for size in shape)
    smooth = gaussian_filter(rng.standard_normal(shape), 3)[inner]
    volume[inner] = 500 + 150 * smooth / smooth.std()
    return volume


def between(first: int, second: int, *, share: float) -> Volume:
    """The first patient with a share of the second's structures: cosine about 1 / sqrt(1 + share^2) to the first."""
    mixed: Volume = (patient(first) + share * patient(second)).astype(np.float32)
    return mixed


def brats(folder: Path, seed: int) -> Path:
    """A BraTS case whose FLAIR is the patient of the seed; the other sequences do not count."""
    return write_case(folder, volumes={"flair": patient(seed)})


def stack(path: Path, flair: Volume) -> Path:
    others = [np.full_like(flair, value) for value in (1, 2, 3)]
    return write(path, np.stack([flair, *others], axis=-1), affine=(1, 1, 1))


class Data:
    """Three sources: patients 0 to 5 are labelled, 100 and 101 of the Decathlon, 200 and 201 unlabelled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for number in range(6):
            brats(root / "labelled" / ("HGG" if number < 4 else "LGG") / f"B{number}", number)
        for number in (100, 101):
            self.decathlon(f"BRATS_{number}", patient(number))
            stack(root / f"imagesTs/BRATS_{number + 100}.nii.gz", patient(number + 100))
        (root / "dataset.json").write_text(json.dumps({"modality": MODALITY}))

    def decathlon(self, case: str, flair: Volume) -> None:
        stack(self.root / f"imagesTr/{case}.nii.gz", flair)
        write(self.root / f"labelsTr/{case}.nii.gz", np.zeros(flair.shape, np.uint8))

    def make(self, *exclude: str, **options: Any) -> dict[str, Any]:
        if exclude:
            (self.root / "exclude.txt").write_text("\n".join(exclude))
            options["exclude"] = str(self.root / "exclude.txt")
        folders = {name: str(self.root / name) for name in ("labelled",)}
        folders |= {"decathlon": str(self.root), "unlabelled": str(self.root / "imagesTs")}
        path = make_datalist(str(self.root / "list.json"), **{**folders, "validation": 0.34, "seed": SEED, **options})
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def names(self, *exclude: str, **options: Any) -> dict[str, list[str]]:
        return {part: [entry["case"] for entry in each] for part, each in self.make(*exclude, **options).items()}

    def invalid(self, *rules: str, exclude: tuple[str, ...] = (), **options: Any) -> str:
        with pytest.raises(ValueError, match=re.compile("problem")) as caught:
            self.make(*exclude, **options)
        for rule in rules:
            assert rule in str(caught.value)
        assert not list(self.root.glob("list.json*"))
        return str(caught.value)
