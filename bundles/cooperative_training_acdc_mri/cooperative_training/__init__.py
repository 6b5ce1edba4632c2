"""Cardiac segmentation in cine MRI that stands corrupted images and unseen scanners: two networks trained together."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
