"""Left-atrium segmentation in LGE-MRI: a locator finds the atrium, a V-Net segments it."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
