"""NRRD headers that lead elsewhere, or do not say where the voxels lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.situations import Refused, Scene, Situation

ONE = ["vnet_atrial_mri"]


def field(name: str, value: str | None) -> Callable[[Scene], None]:
    """Replaces or adds a field of the header of the first validation case's scan; `None` removes it."""

    def make(scene: Scene) -> None:
        path = Path(scene.cases["validation"][0]["image"])
        header, _, data = path.read_bytes().partition(b"\n\n")
        lines = [line for line in header.split(b"\n") if not line.startswith(name.encode() + b":")]
        lines += [] if value is None else [f"{name}: {value}".encode()]
        path.write_bytes(b"\n".join(lines) + b"\n\n" + data)

    return make


def refused(name: str, value: str | None, rule: str) -> Situation:
    title = f"{name} is {'missing' if value is None else value.replace('/', '_')}"
    return Situation(title, field(name, value), Refused(["{case}", "{file}", rule]), bundles=ONE)


SITUATIONS = [
    refused("data file", "/dev/zero", "its voxels are in another file"),
    refused("space directions", None, "does not say how it lies in the patient"),
    refused("space units", '"cm" "cm" "cm"', "its unit must be mm"),
]
