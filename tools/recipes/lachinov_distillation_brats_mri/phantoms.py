"""The phantoms of hadnet_brats_mri: both bundles read the same scans."""

from tools.recipes.hadnet_brats_mri.phantoms import case

__all__ = ["case"]
