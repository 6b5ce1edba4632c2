"""The verbs of `python -m tools dicom`."""

from __future__ import annotations

from tools.dicom.seg import seg
from tools.dicom.web import fetch, store

__all__ = ["dicom"]

dicom = {"seg": seg, "fetch": fetch, "store": store}
