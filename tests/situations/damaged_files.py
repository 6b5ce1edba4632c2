"""Files that are no longer what was written."""

from __future__ import annotations

from tests.situations import Refused, Situation
from tests.spoilt import cut

SITUATIONS = [
    Situation(
        "a scan is cut short",
        lambda scene: cut(scene.cases["validation"][0]["image"]),
        Refused(["{case}", "{file}", "cannot be read"]),
        bundles=["vnet_atrial_mri", "hadnet_brats_mri"],
    ),
]
