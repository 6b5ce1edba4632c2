"""Files that are no longer what was written."""

from __future__ import annotations

import os
from pathlib import Path

from tests.contract.situations import Invalid, Scene, Situation
from tests.support.corruption import cut

BOTH = ["vnet_atrial_mri", "hadnet_brats_mri"]  # NRRD and NIfTI, a volume and several sequences


def flip(scene: Scene) -> None:
    """Flips one bit in the middle of a compressed scan, as a failing disk does."""
    path = Path(scene.cases["validation"][0]["image"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(scene: Scene) -> None:
    """Leaves the end of another file behind a scan."""
    with Path(scene.cases["validation"][0]["image"]).open("ab") as file:
        file.write(b"the end of a longer file")


def pipe(scene: Scene) -> None:
    path = Path(scene.cases["validation"][0]["label"])
    path.unlink()
    os.mkfifo(path)


SITUATIONS = [
    Situation(
        "a scan is cut short",
        lambda scene: cut(scene.cases["validation"][0]["image"]),
        Invalid(["{case}", "{file}", "cannot be read"]),
        bundles=BOTH,
    ),
    Situation("a bit of a scan is flipped", flip, Invalid(["{case}", "{file}", "cannot be read"]), bundles=BOTH),
    Situation("a scan goes on", append, Invalid(["{case}", "{file}", "cannot be read"]), bundles=BOTH),
    Situation(
        "a label of a scan to evaluate is a pipe",
        pipe,
        Invalid(["{case}", "label is no regular file"]),
        bundles=BOTH[1:],
        commands=["evaluate"],
    ),
]
