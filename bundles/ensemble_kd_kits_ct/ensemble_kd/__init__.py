"""Kidney and tumour segmentation in CT: many networks teach one by their averaged soft labels."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
