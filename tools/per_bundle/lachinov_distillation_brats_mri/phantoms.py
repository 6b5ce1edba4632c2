"""The phantoms of hadnet_brats_mri, as if every patient had been scanned elsewhere.

A few labelled patients then do not show what the others look like, as it is with scans from many hospitals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tools.data.phantoms import Volume
from tools.per_bundle.hadnet_brats_mri import phantoms as brains

CONTRAST = 0.4  # a sequence's exponent is e to the power of at most this, up or down


def case(
    rng: np.random.Generator, *, shape: Sequence[int] = brains.SHAPE, spacing: Sequence[float] = brains.SPACING
) -> dict[str, Volume | str]:
    """Draw one patient; arguments and files are those of hadnet_brats_mri.

    The contrast of each sequence is changed by an exponent, drawn before anything that depends on the grid.
    """
    exponents = dict(zip(brains.SEQUENCES, np.exp(rng.uniform(-CONTRAST, CONTRAST, 4)), strict=True))

    def changed(name: str, content: Volume | str) -> Volume | str:
        sequence = name.rpartition("_")[2].partition(".")[0]
        if isinstance(content, str) or sequence not in exponents:
            return content
        return content._replace(voxels=curved(content.voxels, exponents[sequence]))

    files = brains.case(rng, shape=shape, spacing=spacing)
    return {name: changed(name, content) for name, content in files.items()}


def curved(scan: NDArray[np.int16], exponent: float) -> NDArray[np.int16]:
    """Raises a scan to a power; its highest value stays, background stays 0 and everything else above it."""
    top = max(int(scan.max()), 1)
    values = np.rint(top * (np.clip(scan, 0, None) / top) ** exponent)
    return np.where(scan > 0, np.maximum(values, 1), 0).astype(np.int16)
