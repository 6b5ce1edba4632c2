"""Cardiac segmentation in cine MRI robust to corrupted images and other scanners: two networks trained together."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
