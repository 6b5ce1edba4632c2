"""Turns slices of the Sunnybrook Cardiac Data, kept as PNG, into a test set that the bundle's evaluation reads.

`python -m tools.experiments.cooperative_training_acdc_mri.sunnybrook SOURCE OUTPUT`
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import fire
import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray
from tqdm import tqdm

from tools.data.phantoms import write_volume

logger = logging.getLogger(__name__)

LV = 3  # the value of the bundle's label maps
FRAME = "ES"


def sunnybrook(source: str, output: str, *, pixel: float = 1.25, thickness: float = 8.0) -> Path:
    """Write each slice of SOURCE as a volume of one slice, `OUTPUT/<name>/ES_img.nii.gz` and `ES_seg.nii.gz`.

    PNG files hold neither a voxel size nor the phase of the heart. The size is an assumption: 320 mm for 256 pixels and
    slices of 8 mm, as the data set is described. The frame is a name only, whatever the phase.

    Args:
        source: folder with `images/*.png`, grey, and left-ventricular masks of the same names in `labels`, 0 and 255.
        output: data folder to create or to add to; volumes of the same name are replaced.
        pixel: size of a pixel in mm.
        thickness: of the slices in mm.

    Returns:
        The data folder.

    Raises:
        FileNotFoundError: there is no image, or one has no mask.
        ValueError: an image is not grey, a mask has other values or another size, or a size is not positive.
    """
    if min(pixel, thickness) <= 0:
        raise ValueError(f"pixel and thickness must be positive, got {pixel} and {thickness}")
    images = sorted(Path(source, "images").glob("*.png"))
    if not images:
        raise FileNotFoundError(f"{source} has no images/*.png")
    for image in tqdm(images, "Sunnybrook slices", unit="slice"):
        scan, mask = _read(image), _read(Path(source, "labels", image.name))
        if mask.shape != scan.shape or not np.isin(mask, (0, 255)).all():
            raise ValueError(f"{image.name}: the mask must be of 0 and 255 and as large as the image")
        volumes = {"img": scan, "seg": np.where(mask == 255, LV, 0).astype(np.uint8)}
        for kind, volume in volumes.items():
            path = Path(output, image.name.split(".")[0], f"{FRAME}_{kind}.nii.gz")
            write_volume(path, volume[..., None], spacing=(pixel, pixel, thickness))
    logger.info("%d slices in %s", len(images), output)
    return Path(output)


def _read(path: Path) -> NDArray[np.uint8]:
    """Reads a grey PNG, whatever its number of channels, as `(X, Y)`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    array: NDArray[Any] = LoadImage(image_only=True, reader="PILReader")(path).numpy()
    channels = np.atleast_3d(array)
    if (channels[..., :3] != channels[..., :1]).any():
        raise ValueError(f"{path} is not grey")
    return channels[..., 0].astype(np.uint8)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fire.Fire(sunnybrook, serialize=lambda _: None)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
