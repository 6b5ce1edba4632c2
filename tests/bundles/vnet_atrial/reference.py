"""Golden tensors of vnet_atrial_mri, its configs, and masks of known shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from tools import REPO

BUNDLE = "vnet_atrial_mri"
GOLDEN = np.load(REPO / "tests/bundles/vnet_atrial/golden.npz")


def config(*stems: str, **overrides: Any) -> ConfigParser:
    """Parser of the bundle's configs merged in this order."""
    parser = ConfigParser()
    parser.read_config([REPO / "bundles" / BUNDLE / "configs" / f"{stem}.yaml" for stem in stems])
    parser.update({key.replace("__", "::"): value for key, value in overrides.items()})
    return parser


def ellipsoid(shape: tuple[int, ...], centre: tuple[int, ...], radii: tuple[int, ...]) -> np.ndarray:
    """Mask of the voxels inside or on an ellipsoid."""
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    return np.asarray(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1)
