"""Synthetic CT around real KiTS19 labels; `python -m tools.experiments.<this folder>.synthetic_ct --help`."""

from __future__ import annotations

import logging
from pathlib import Path

import fire
import numpy as np
from monai.transforms import LoadImage, Orientation, Spacing
from tqdm import tqdm

from tools.data.phantoms import write_volume
from tools.per_bundle.ensemble_kd_kits_ct.phantoms import paint


def synthetic_ct(labels: str, output: str, *, spacing: float = 3.0, seed: int = 0) -> Path:
    """Make a synthetic CT around every label map in LABELS, and write both to OUTPUT in the layout of KiTS19.

    The kidneys and tumours are those of real patients, everything else is invented, see `phantoms.paint`.

    Args:
        labels: folder of `<case>/segmentation.nii.gz`.
        output: folder to create or to add to.
        spacing: voxel size of what is written, in mm.
        seed: seed; the tissue of a case depends on it and on the case's place in the list.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no label map.
    """
    files = sorted(Path(labels).glob("*/segmentation.nii.gz"))
    if not files:
        raise FileNotFoundError(f"{labels}: no <case>/segmentation.nii.gz")
    for index, file in enumerate(tqdm(files, "Synthetic CT", unit="case")):
        volume = LoadImage(image_only=True, ensure_channel_first=True)(file)
        volume = Spacing([spacing] * 3, mode="nearest")(Orientation("LPS", labels=None)(volume))
        label = volume[0].numpy().astype(np.uint8)
        middle = np.mean(np.argwhere(label > 0), axis=0)
        axes = [((np.arange(n) - m) * spacing).astype(np.float32) for n, m in zip(label.shape, middle, strict=True)]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        image = paint(np.random.default_rng([seed, index]), label, points=(x, y, z), spacing=[spacing] * 3)
        for name, voxels in (("imaging", image), ("segmentation", label)):
            write_volume(Path(output) / file.parent.name / f"{name}.nii.gz", voxels, spacing=[spacing] * 3)
    return Path(output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(synthetic_ct, serialize=lambda _: None)
