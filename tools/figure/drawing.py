"""Drawings of methods: scans, networks and arrows at places that a description gives, in pixels of a page 900 wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from tools.figure.slices import Slice
from tools.shared.files import atomic_write

__all__ = ["draw"]

WIDTH, SHARPNESS, FONT, POINT = 900, 2, 12, 0.72  # pixels; pixels of the file for each; pixels; points of a pixel
PAPER, EDGE, INK, DIM = "#f6f8fa", "#d0d7de", "#1f2328", "#59636e"  # reads on light and on dark pages
FILLS = {"network": "#ddf4ff", "teacher": "#fff1cc", "data": "#ffffff", "loss": "#fbe4f0"}
LINES = {"network": "#0969da", "teacher": "#9a6700", "data": "#8c959f", "loss": "#bf3989"}
ARROWS = {"data": (INK, "-"), "training": ("#bc4c00", (0, (4, 2)))}
LABELS = ("#2ec4ff", "#ffb000", "#ff4f81", "#7ee081")
COLOURS = 96  # of the file: grey scans and a few tints


class Place(NamedTuple):
    """Centre and half sizes of a node in pixels, and the height of the text below it."""

    x: float
    y: float
    across: float
    down: float
    below: float = 0

    def depth(self, downwards: bool) -> float:
        """From the centre to the upper or the lower edge."""
        return self.down + (self.below if downwards else 0)


def draw(plan: Mapping[str, Any], slices: Mapping[str, Slice], *, path: Path) -> Path:
    """Draw a method and write it as a PNG file, which appears complete or not at all.

    Args:
        plan: `height` in pixels; `nodes`, by name: a centre `at` and either a `slice` with `size`, `mask` and
            `text`, or lines of a `box` with `width` and `role`; `arrows` with `from`, `to`, `kind` (data or training),
            `text`, `bend`; `texts` with `at`; whether there is a `legend`.
        slices: the slices that nodes name.
        path: PNG file to write.

    Returns:
        The file written.

    Raises:
        ValueError: an arrow or a node names what there is not.
    """
    height = float(plan["height"])
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100 * SHARPNESS, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    page = FancyBboxPatch((1, 1), WIDTH - 2, height - 2, boxstyle="round,pad=0,rounding_size=10", fc=PAPER, ec=EDGE)
    axes.add_patch(page)
    places = {name: _node(axes, node, slices) for name, node in plan["nodes"].items()}
    for arrow in plan["arrows"]:
        _arrow(axes, arrow, places)
    for text in plan.get("texts", ()):
        _write(axes, text["at"], [text["text"]], bold=bool(text.get("bold")), colour=INK if text.get("bold") else DIM)
    if plan.get("legend"):
        _legend(axes, height - 16)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", transparent=True)
    with atomic_write(path) as partial:
        small = Image.open(drawn).quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
        small.save(partial, format="png", optimize=True)
    return path


def _node(axes: Axes, node: Mapping[str, Any], slices: Mapping[str, Slice]) -> Place:
    x, y = map(float, node["at"])
    if "box" in node:
        return _box(axes, node, x, y)
    if node["slice"] not in slices:
        raise ValueError(f"there is no slice {node['slice']!r}, there are: {', '.join(slices)}")
    shown, half = slices[node["slice"]], float(node.get("size", 120)) / 2
    extent = (x - half, x + half, y + half, y - half)
    axes.imshow(shown.scan, cmap="gray", extent=extent, aspect="auto", interpolation="bilinear", zorder=2)
    if node.get("mask"):
        _masks(axes, shown, extent, filled=bool(node.get("filled")))
    axes.set(xlim=(0, WIDTH), ylim=axes.get_ylim())
    lines = node.get("text", [])
    _write(axes, (x, y + half + 13 + 7.5 * (len(lines) - 1)), lines, colour=DIM)
    return Place(x, y, half + 3, half + 3, below=15 * len(lines) + 4)


def _masks(axes: Axes, shown: Slice, extent: tuple[float, float, float, float], *, filled: bool) -> None:
    """Draws the outline of every label; `extent`: left, right, lower and upper edge, so that rows go down."""
    for label in sorted({*shown.labels.flat} - {0}):
        inside, colour = shown.labels[::-1] == label, LABELS[0 if label == 255 else (int(label) - 1) % len(LABELS)]
        axes.contour(inside, levels=[0.5], colors=[colour], linewidths=1.1, extent=extent, zorder=3)
        if filled:
            axes.contourf(inside, levels=[0.5, 1.5], colors=[colour], alpha=0.55, extent=extent, zorder=3)


def _box(axes: Axes, node: Mapping[str, Any], x: float, y: float) -> Place:
    lines, role = node["box"], node.get("role", "network")
    across, down = float(node.get("width", 130)) / 2, 9 + 7.5 * len(lines)
    style = "round,pad=0,rounding_size=6"
    axes.add_patch(
        FancyBboxPatch(
            (x - across, y - down), 2 * across, 2 * down, boxstyle=style, fc=FILLS[role], ec=LINES[role], zorder=2
        )
    )
    _write(axes, (x, y - 7.5 * (len(lines) - 1)), lines[:1], bold=True)
    _write(axes, (x, y + 7.5), lines[1:], colour=DIM)
    return Place(x, y, across + 2, down + 2)


def _write(
    axes: Axes,
    at: Sequence[float],
    lines: Sequence[str],
    *,
    bold: bool = False,
    colour: str = INK,
    on_line: bool = False,
) -> None:
    """Writes lines around the place `at`; `on_line` covers what is below them."""
    for i, line in enumerate(lines):
        place = at[0], at[1] + 15 * (i - (len(lines) - 1) / 2)
        weight = "bold" if bold else "normal"
        text = axes.text(*place, line, ha="center", va="center", color=colour, fontsize=FONT * POINT, weight=weight)
        text.set(zorder=5, bbox={"boxstyle": "square,pad=0.15", "fc": PAPER, "ec": "none"} if on_line else None)


def _arrow(axes: Axes, arrow: Mapping[str, Any], places: Mapping[str, Place]) -> None:
    """Draws an arrow from the edge of one node to that of another, and its text beside its middle."""
    for end in (arrow["from"], arrow["to"]):
        if end not in places:
            raise ValueError(f"an arrow names {end!r}, the nodes are: {', '.join(places)}")
    start, end, bend = places[arrow["from"]], places[arrow["to"]], float(arrow.get("bend", 0))
    colour, line = ARROWS[arrow.get("kind", "data")]
    first, last = _edge(start, end, arrow.get("leave")), _edge(end, start, arrow.get("enter"))
    axes.add_patch(
        FancyArrowPatch(
            first,
            last,
            arrowstyle="-|>",
            mutation_scale=9,
            connectionstyle=f"arc3,rad={bend}",
            color=colour,
            linestyle=line,
            linewidth=1.4,
            shrinkA=0,
            shrinkB=0,
            zorder=4,
        )
    )
    if lines := arrow.get("text"):
        dx, dy = arrow.get("shift", (0, 0))
        middle = (first[0] + last[0]) / 2 + dx, (first[1] + last[1]) / 2 + dy
        _write(axes, middle, lines, colour=colour if arrow.get("kind") == "training" else DIM, on_line=True)


def _edge(node: Place, other: Place, side: str | None) -> tuple[float, float]:
    """Where an arrow meets the edge of a node: the middle of a `side`, or on the line to the other's centre."""
    sides = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
    if side:
        across, down = sides[side]
        return node.x + across * node.across, node.y + down * node.depth(down > 0)
    dx, dy = other.x - node.x, other.y - node.y
    share = min(node.across / abs(dx) if dx else 1e9, node.depth(dy > 0) / abs(dy) if dy else 1e9)
    return node.x + share * dx, node.y + share * dy


def _legend(axes: Axes, y: float) -> None:
    """Says what the two kinds of arrows mean, and what the masks are."""
    for x, kind, text in ((22, "data", "training and inference"), (212, "training", "training only")):
        colour, line = ARROWS[kind]
        axes.add_patch(
            FancyArrowPatch((x, y), (x + 28, y), arrowstyle="-|>", mutation_scale=8, color=colour, linestyle=line)
        )
        axes.text(x + 36, y, text, va="center", color=DIM, fontsize=FONT * POINT)
    note = "scans: phantoms; masks: their references, not predictions"
    axes.text(WIDTH - 22, y, note, va="center", ha="right", color=DIM, fontsize=FONT * POINT)
