"""Brain tumour segmentation in MRI without contrast agent: a teacher with it teaches a student without."""

from pathlib import Path

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])
