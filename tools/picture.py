"""One overview picture of scans with their references and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from tools.files import replacing

MARGIN_MM = 25.0
PANEL_WIDTH, HEADING, GUTTER, DPI = 3.6, 0.5, 0.1, 120
INK, PAPER, DIM = "#e8e8e8", "#101214", "#8a9099"
COLOURS = ("#2ec4ff", "#ffb000", "#ff4f81", "#7ee081", "#b794ff", "#f2f25a")
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground=PAPER)]
# Name, axis across the plane, letters of its left and right edge, of its upper and lower edge.
PLANES = (("axial", 2, "RL", "AP"), ("coronal", 1, "RL", "SI"), ("sagittal", 0, "AP", "SI"))


Box = tuple[slice, slice, slice]


class Case(NamedTuple):
    """The three volumes of one case, as NRRD or NIfTI files on one grid."""

    name: str
    image: str | Path
    reference: str | Path
    prediction: str | Path


class Volumes(NamedTuple):
    """A case in memory: arrays `(X, Y, Z)` along left, back, head and the voxel size in mm."""

    image: NDArray[np.float32]
    reference: NDArray[np.int16]
    prediction: NDArray[np.int16]
    spacing: tuple[float, float, float]


def overview(cases: Sequence[Case], path: str | Path, *, title: str = "") -> Path:
    """Draw scan, reference and prediction of every case in three planes, with the Dice coefficients in its heading.

    Each plane is the one in which the reference is largest, cropped to the labels, in radiological orientation and true
    proportions. The prediction column repeats the outline of the reference.

    Args:
        cases: one block of three rows each. Files with several channels show the first; label 255 counts as 1.
        path: PNG file to write; it appears complete or not at all.
        title: heading of the picture.

    Returns:
        The file written.

    Raises:
        ValueError: there is no case, or the volumes of a case differ in shape or affine.
    """
    if not cases:
        raise ValueError(f"{path}: no case to draw")
    blocks = [load(case) for case in cases]
    heights = [block_height(label_box(volumes), volumes.spacing) for volumes in blocks]
    figure = Figure(figsize=(3 * PANEL_WIDTH, sum(heights) + HEADING), facecolor=PAPER, dpi=DPI)
    head, *parts = figure.subfigures(len(cases) + 1, 1, squeeze=False, height_ratios=[HEADING, *heights]).flat
    head.text(0.012, 0.4, title, color=INK, fontsize=13, fontweight="bold", va="center")
    for part, case, volumes, height in zip(parts, cases, blocks, heights, strict=True):
        draw_case(part, volumes, name=case.name, height=height)
    with replacing(Path(path)) as partial:
        figure.savefig(partial, format="png", facecolor=PAPER)
    return Path(path)


def load(case: Case) -> Volumes:
    """Read the files of `case` and turn them to left, back, head.

    Raises:
        ValueError: the volumes differ in shape or affine.
    """
    from monai.transforms import Compose, LoadImage, Orientation

    read = Compose(
        [LoadImage(image_only=True, ensure_channel_first=True, simple_keys=True), Orientation("LPS", labels=None)]
    )
    volumes = [read(str(file)) for file in case[1:]]
    shapes = [tuple(v.shape[1:]) for v in volumes]
    if len(set(shapes)) > 1:
        raise ValueError(f"{case.name}: image, reference and prediction differ in shape: {shapes}")
    if not all(np.allclose(v.affine, volumes[0].affine, atol=1e-3) for v in volumes):
        raise ValueError(f"{case.name}: image, reference and prediction lie in different places (affine)")
    image, *masks = (np.asarray(v[0]) for v in volumes)
    reference, prediction = (np.where(m == 255, 1, m).astype(np.int16) for m in masks)
    x, y, z = (float(s) for s in volumes[0].pixdim)
    return Volumes(image.astype(np.float32), reference, prediction, (x, y, z))


def dice(volumes: Volumes) -> dict[int, float]:
    """Dice coefficient of every label in the reference or the prediction; nan where the reference lacks the label."""
    import torch
    from monai.metrics import compute_dice

    labels = [int(v) for v in np.union1d(volumes.reference, volumes.prediction) if v]
    if not labels:
        return {}
    stacks = [torch.stack([torch.from_numpy(m == v) for v in labels])[None] for m in volumes[1:3]]
    reference, prediction = stacks
    return dict(zip(labels, compute_dice(prediction, reference)[0].tolist(), strict=True))


def label_box(volumes: Volumes) -> Box:
    """The part of the volume to show: all labels of reference and prediction and a margin, else everything."""
    found = (volumes.reference > 0) | (volumes.prediction > 0)
    if not found.any():
        found = np.ones_like(found)
    box = []
    for axis, step in enumerate(volumes.spacing):
        used = np.flatnonzero(found.any(axis=tuple({0, 1, 2} - {axis})))
        margin = round(MARGIN_MM / step)
        box.append(slice(max(0, int(used[0]) - margin), min(found.shape[axis], int(used[-1]) + margin + 1)))
    return box[0], box[1], box[2]


def block_height(box: Box, spacing: Sequence[float]) -> float:
    """Height in inches of the three rows of a case and its heading, at one scale for all planes."""
    width, depth, height = extents(box, spacing)
    return HEADING + (PANEL_WIDTH - GUTTER) / max(width, depth) * (depth + 2 * height) + 3 * GUTTER


def extents(box: Box, spacing: Sequence[float]) -> tuple[float, float, float]:
    """Size of `box` in mm."""
    x, y, z = ((part.stop - part.start) * step for part, step in zip(box, spacing, strict=True))
    return x, y, z


def best_plane(volumes: Volumes, axis: int) -> int:
    """Index of the plane across `axis` with most reference, else most prediction, else the middle one."""
    others = tuple({0, 1, 2} - {axis})
    for mask in (volumes.reference, volumes.prediction):
        if (area := np.count_nonzero(mask, axis=others)).any():
            return int(area.argmax())
    return volumes.image.shape[axis] // 2


def draw_case(figure: SubFigure, volumes: Volumes, *, name: str, height: float) -> None:
    """Draw the heading and the nine panels of one case into a part of the picture `height` inches tall."""
    box = label_box(volumes)
    middle = 1 - HEADING / height / 2
    figure.text(0.012, middle, name, color=INK, fontsize=10, va="center")
    scores = dice(volumes)
    for place, (label, score) in enumerate(reversed(scores.items())):
        text = f"Dice {score:.3f}" if len(scores) == 1 else f"[{label}] {score:.3f}"
        right = 0.988 - 0.09 * place
        figure.text(right, middle, text, color=colour_of(label), fontsize=11, weight="bold", va="center", ha="right")
    _, y, z = extents(box, volumes.spacing)
    axes = figure.subplots(3, 3, gridspec_kw={"height_ratios": [y, z, z]})
    figure.subplots_adjust(left=0.03, right=0.988, bottom=0.012, top=1 - HEADING / height, wspace=0.03, hspace=0.05)
    window = np.percentile(volumes.image[box], (1, 99.5))
    for row, (plane, axis, across, down) in zip(axes, PLANES, strict=True):
        index = best_plane(volumes, axis)
        cut = tuple(index if i == axis else part for i, part in enumerate(box))
        steps = [s for i, s in enumerate(volumes.spacing) if i != axis]
        image, reference, prediction = (v[cut].T for v in volumes[:3])
        for panel in row:
            show(panel, image, steps=steps, window=window, flip=axis == 2)
        outline(row[1], reference, steps=steps)
        outline(row[2], reference, steps=steps, colour="white")
        outline(row[2], prediction, steps=steps)
        row[0].set_ylabel(plane, color=DIM, fontsize=9)
        mark_directions(row[0], across + down)
    for panel, heading in zip(axes[0], ("scan", "reference", "prediction (white: reference)"), strict=True):
        panel.set_title(heading, color=DIM, fontsize=9, pad=3)


def colour_of(label: int) -> str:
    """Colour of a label, repeating after the sixth."""
    return COLOURS[(int(label) - 1) % len(COLOURS)]


def mark_directions(panel: Axes, letters: str) -> None:
    """Write the letters of the left, right, upper and lower edge of `panel`."""
    for letter, (x, y) in zip(letters, ((0, 0.5), (1, 0.5), (0.5, 1), (0.5, 0)), strict=True):
        text = panel.annotate(
            letter, (x, y), xytext=(9 - 18 * x, 9 - 18 * y), xycoords="axes fraction", textcoords="offset points"
        )
        text.set(color=INK, fontsize=8, ha="center", va="center", path_effects=HALO)


def show(panel: Axes, image: NDArray[Any], *, steps: Sequence[float], window: NDArray[Any], flip: bool) -> None:
    """Show the plane `image` `(rows, columns)` in mm; `flip` puts row 0 at the top."""
    rows, columns = image.shape
    width, height = columns * steps[0], rows * steps[1]
    extent = (0.0, width, height, 0.0) if flip else (0.0, width, 0.0, height)
    origin: Literal["upper", "lower"] = "upper" if flip else "lower"
    low, high = window
    panel.imshow(
        image, cmap="gray", vmin=low, vmax=high, extent=extent, origin=origin, aspect="equal", interpolation="bilinear"
    )
    panel.set(xticks=[], yticks=[], facecolor=PAPER)
    panel.spines[:].set_visible(False)


def outline(panel: Axes, mask: NDArray[Any], *, steps: Sequence[float], colour: str | None = None) -> None:
    """Draw every label of the plane `mask`: filled in the label's colour, or as a line in `colour`."""
    x, y = ((np.arange(n) + 0.5) * s for n, s in zip(mask.shape[::-1], steps, strict=True))
    for label in np.unique(mask[mask != 0]):
        inside = (mask == label).astype(float)
        if colour is None:
            paint = colour_of(label)
            panel.contourf(x, y, inside, levels=[0.5, 1.5], colors=[paint], alpha=0.3)
            panel.contour(x, y, inside, levels=[0.5], colors=[paint], linewidths=1.3)
        else:
            panel.contour(x, y, inside, levels=[0.5], colors=[colour], linewidths=0.9).set_path_effects(HALO)
