"""Brain tumour segmentation in MRI: an ensemble of networks annotates scans, one network learns from all."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
