"""The verb `figure`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from tools import REPO
from tools.figure.drawing import WIDTH, draw
from tools.figure.slices import Slice, phantom_slice

logger = logging.getLogger(__name__)

TILE, MARGIN = 150, 12  # width in pixels of what is in a tile of the overview, and of what is left and right of all


def figure(bundle: str | None = None, *, output: str | None = None) -> Path:
    """Draw the method of BUNDLE with phantoms, or an overview of all methods.

    What a figure shows stands in `tools/per_bundle/BUNDLE/figure.yaml`. Its scans are phantoms and its masks are the
    references of these phantoms; no network has a part in it.

    Args:
        bundle: name of a bundle, for example vnet_atrial_mri. Default: the overview in the README.
        output: PNG file to write. Default: docs/figure.png of the bundle, or of the repository.

    Returns:
        The file written.

    Raises:
        ValueError: the bundle has no figure, or its description names what it does not have.
    """
    known = sorted(path.parent.name for path in REPO.glob("tools/per_bundle/*/figure.yaml"))
    if bundle is not None and bundle not in known:
        raise ValueError(f"no figure for bundle {bundle!r}; there are figures for: {', '.join(known)}")
    default = REPO / (f"bundles/{bundle}/docs/figure.png" if bundle else "docs/figure.png")
    plan, shown = _of_bundle(bundle) if bundle else _overview(known)
    path = draw(plan, shown, path=Path(output) if output else default)
    logger.info("%s: %.0f KB", path, path.stat().st_size / 1e3)
    return path


def _read(bundle: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPO / f"tools/per_bundle/{bundle}/figure.yaml").read_text("utf-8"))
    return content


def _of_bundle(bundle: str) -> tuple[dict[str, Any], dict[str, Slice]]:
    plan = _read(bundle)
    return plan, {name: phantom_slice(bundle, **wanted) for name, wanted in plan["slices"].items()}


def _overview(bundles: list[str]) -> tuple[dict[str, Any], dict[str, Slice]]:
    """The plan of a row of tiles: a scan with its reference, below it the two parts of the method and their link."""
    plan: dict[str, Any] = {"height": 400, "nodes": {}, "arrows": [], "texts": [], "legend": True}
    described = {bundle: _read(bundle) for bundle in bundles}
    order = sorted(bundles, key=lambda bundle: int(described[bundle]["overview"]["place"]))
    shown: dict[str, Slice] = {}
    for i, bundle in enumerate(order):
        tile = described[bundle]["overview"]
        shown[bundle] = phantom_slice(bundle, **described[bundle]["slices"][tile["slice"]])
        x = MARGIN + (WIDTH - 2 * MARGIN) / len(order) * (i + 0.5)
        first, second, scan = f"{bundle} 1", f"{bundle} 2", f"{bundle} scan"
        plan["texts"].append({"at": [x, 22], "text": tile["title"], "bold": True})
        plan["nodes"][scan] = {"at": [x, 128], "slice": bundle, "mask": True, "size": TILE}
        for name, y, part in ((first, 252, tile["first"]), (second, 338, tile["second"])):
            plan["nodes"][name] = {"at": [x, y], "width": TILE, **part}
        plan["arrows"].append({"from": first, "to": second, "kind": tile["kind"], "text": tile["link"]})
    return plan, shown
