"""Masks as NRRD, the format of the challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from .shared.files import atomic_write
from .shared.writing import ScanGridWriter, check_shape

__all__ = ["MaskWriter"]

GRID = (
    *("space", "space dimension", "space directions", "space origin", "space units", "measurement frame"),
    *("spacings", "thicknesses", "axis mins", "axis maxs", "centers", "centerings", "kinds", "units"),
)


class MaskWriter(ScanGridWriter):
    """`ScanGridWriter` of one channel that writes NRRD where the name of a file ends so."""

    def write(self, filename: str | Path, verbose: bool = False, **_: Any) -> None:
        """Writes the file, complete or not at all; from a scan in NRRD the geometry is taken as it is.

        Raises:
            OSError: when it cannot be written.
            ValueError: when the mask is not on the scan's grid.
        """
        if not str(filename).endswith(".nrrd"):
            super().write(filename, verbose=verbose)
            return
        values, scan = self.data_obj[..., 0], str(self.meta["filename_or_obj"])
        if scan.lower().endswith(".nrrd"):
            found = nrrd.read_header(scan)
            check_shape(values, found["sizes"].tolist())
            header = {name: found[name] for name in GRID if name in found}
        else:
            header = _header(np.asarray(self.meta["original_affine"], dtype=np.float64))
        with atomic_write(filename) as partial:
            nrrd.write(str(partial), values, header, index_order="F", compression_level=1)


def _header(affine: NDArray[Any]) -> dict[str, Any]:
    """Geometry in the coordinates that ITK writes, which run to the left and to the back."""
    turned = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    directions = {"space directions": turned[:, :3].T, "space origin": turned[:, 3]}
    return {"space": "left-posterior-superior", **directions, "kinds": ["domain"] * 3}
