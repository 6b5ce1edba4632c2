"""One overview figure of scans with their references and predictions."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from tools.shared.files import atomic_write

MARGIN_MM = 25.0
THICK_MM = 5.0
STACK_PLANES = 3
PANEL_WIDTH, HEADING, GUTTER, DPI = 3.6, 0.5, 0.1, 120
INK, PAPER, DIM = "#e8e8e8", "#101214", "#8a9099"
COLOURS = ("#2ec4ff", "#ffb000", "#ff4f81", "#7ee081", "#b794ff", "#f2f25a")
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground=PAPER)]
# Name, axis across the plane, letters of its left, right, upper and lower edge.
PLANES = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))

Box = tuple[slice, slice, slice]
Array = NDArray[Any]


class Case(NamedTuple):
    """The volumes of one case, as NRRD or NIfTI files on one grid; predictions and maps by their columns' headings."""

    name: str
    image: str | Path
    reference: str | Path
    predictions: Mapping[str, str | Path]
    maps: Mapping[str, str | Path] = {}


class Volumes(NamedTuple):
    """A case in memory: arrays `(X, Y, Z)` and the voxel size in mm; axes see `load`."""

    image: NDArray[np.float32]
    reference: NDArray[np.int16]
    predictions: dict[str, NDArray[np.int16]]
    maps: dict[str, NDArray[np.float32]]
    spacing: tuple[float, float, float]

    @property
    def masks(self) -> list[NDArray[np.int16]]:
        """The reference and all predictions."""
        return [self.reference, *self.predictions.values()]


class Plane(NamedTuple):
    """A plane to show: its place on the axis across it, and the letters of its left, right, upper and lower edge."""

    name: str
    axis: int
    place: int
    letters: str = ""


def overview(cases: Sequence[Case], path: str | Path, *, title: str = "") -> Path:
    """Draw scan, reference and predictions of every case in three planes, with the Dice coefficients in its heading.

    Each plane is the one in which the reference is largest, in radiological orientation. Of a stack of thick slices
    three slices are shown as stored: x to the right, y down. All are cropped to the labels and have true proportions.
    The columns of predictions repeat the outline of the reference. Maps are shown from 0, black, to their highest
    value, which stands in the heading of their column.

    Args:
        cases: one block of rows each, all with the same predictions. Files with several channels show the first; label
            255 counts as 1.
        path: PNG file to write; it appears complete or not at all.
        title: heading of the figure.

    Returns:
        The file written.

    Raises:
        ValueError: there is no case, or the volumes of a case differ in shape or affine.
    """
    if not cases:
        raise ValueError(f"{path}: no case to draw")
    blocks = [load(case) for case in cases]
    heights = [block_height(volumes) for volumes in blocks]
    columns = 2 + len(cases[0].predictions) + len(cases[0].maps)
    figure = Figure(figsize=(columns * PANEL_WIDTH, sum(heights) + HEADING), facecolor=PAPER, dpi=DPI)
    head, *parts = figure.subfigures(len(cases) + 1, 1, squeeze=False, height_ratios=[HEADING, *heights]).flat
    head.text(0.012, 0.4, title, color=INK, fontsize=13, fontweight="bold", va="center")
    for part, case, volumes, height in zip(parts, cases, blocks, heights, strict=True):
        draw_case(part, volumes, name=case.name, height=height)
    with atomic_write(Path(path)) as partial:
        figure.savefig(partial, format="png", facecolor=PAPER)
    return Path(path)


def case_figure(case: Case) -> bytes:
    """One case, drawn as `overview` does, as a PNG file.

    Raises:
        ValueError: the volumes of the case differ in shape or affine.
    """
    volumes = load(case)
    height, columns = block_height(volumes), 2 + len(case.predictions) + len(case.maps)
    figure = Figure(figsize=(columns * PANEL_WIDTH, height), facecolor=PAPER, dpi=DPI)
    draw_case(figure, volumes, name=case.name, height=height)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", facecolor=PAPER)
    return drawn.getvalue()


def load(case: Case) -> Volumes:
    """Read the files of `case` and turn them to left, back, head.

    Stacks of thick slices stay as stored: they are often oblique, and turning them could exchange their axes.

    Raises:
        ValueError: the volumes differ in shape or affine.
    """
    from monai.transforms import LoadImage, Orientation

    read = LoadImage(image_only=True, ensure_channel_first=True, simple_keys=True)
    volumes = list(map(read, (case.image, case.reference, *case.predictions.values(), *case.maps.values())))
    if thick_axis(volumes[0].pixdim.tolist()) is None:
        volumes = [Orientation("LPS", labels=None)(volume) for volume in volumes]
    shapes = [tuple(v.shape[1:]) for v in volumes]
    if len(set(shapes)) > 1:
        raise ValueError(f"{case.name}: image, reference and prediction differ in shape: {shapes}")
    if not all(np.allclose(v.affine, volumes[0].affine, atol=1e-3) for v in volumes):
        raise ValueError(f"{case.name}: image, reference and prediction lie in different places (affine)")
    image, *masks = (np.asarray(v[0]) for v in volumes[: 2 + len(case.predictions)])
    maps = [np.asarray(v[0], dtype=np.float32) for v in volumes[2 + len(case.predictions) :]]
    reference, *predictions = (np.where(m == 255, 1, m).astype(np.int16) for m in masks)
    x, y, z = map(float, volumes[0].pixdim)
    named = dict(zip(case.predictions, predictions, strict=True))
    return Volumes(image.astype(np.float32), reference, named, dict(zip(case.maps, maps, strict=True)), (x, y, z))


def thick_axis(spacing: Sequence[float]) -> int | None:
    """Axis along which the slices of a stack lie, too far apart to cut across them; `None` for other volumes."""
    *_, pixel, step = sorted(spacing)
    return int(np.argmax(spacing)) if step >= max(THICK_MM, 1.5 * pixel) else None


def dice(reference: NDArray[np.int16], prediction: NDArray[np.int16]) -> dict[int, float]:
    """Dice coefficient of every label in the reference or the prediction; nan where the reference lacks the label."""
    import torch
    from monai.metrics import compute_dice

    labels = [int(v) for v in np.union1d(reference, prediction) if v]
    if not labels:
        return {}
    true, found = (torch.stack([torch.from_numpy(m == v) for v in labels])[None] for m in (reference, prediction))
    return dict(zip(labels, compute_dice(found, true)[0].tolist(), strict=True))


def label_box(volumes: Volumes) -> Box:
    """The part of the volume to show: all labels of reference and predictions and a margin, else everything."""
    found = np.any(volumes.masks, axis=0)
    if not found.any():
        found = np.ones_like(found)
    box = []
    for axis, step in enumerate(volumes.spacing):
        used = np.flatnonzero(found.any(axis=others(axis)))
        margin = round(MARGIN_MM / step)
        box.append(slice(max(0, int(used[0]) - margin), min(found.shape[axis], int(used[-1]) + margin + 1)))
    return box[0], box[1], box[2]


def others(axis: int) -> tuple[int, int]:
    """The two axes of a plane across `axis`."""
    first, second = (i for i in range(3) if i != axis)
    return first, second


def plane_sizes(volumes: Volumes) -> list[tuple[float, float]]:
    """Width and height in mm of the planes to show."""
    mm = [(part.stop - part.start) * step for part, step in zip(label_box(volumes), volumes.spacing, strict=True)]
    return [(mm[x], mm[y]) for x, y in (others(plane.axis) for plane in planes(volumes))]


def block_height(volumes: Volumes) -> float:
    """Height in inches of the rows of a case and its heading, at one scale for all planes."""
    widths, heights = zip(*plane_sizes(volumes), strict=True)
    return HEADING + (PANEL_WIDTH - GUTTER) / max(widths) * sum(heights) + 3 * GUTTER


def planes(volumes: Volumes) -> list[Plane]:
    """The planes to show: one across each axis, or slices at a sixth, half and five sixths of a stack's labels."""
    axis = thick_axis(volumes.spacing)
    if axis is None:
        return [Plane(name, axis, best_plane(volumes, axis), letters) for name, axis, letters in PLANES]
    depth = volumes.image.shape[axis]
    areas = (np.count_nonzero(mask, axis=others(axis)) for mask in volumes.masks)
    used = next((np.flatnonzero(area) for area in areas if area.any()), np.arange(depth))
    places = np.unique([(2 * i + 1) * len(used) // (2 * STACK_PLANES) for i in range(STACK_PLANES)])
    return [Plane(f"slice {index + 1} of {depth}", axis, index) for index in used[places].tolist()]


def best_plane(volumes: Volumes, axis: int) -> int:
    """Index of the plane across `axis` with most reference, else most prediction, else the middle one."""
    for mask in volumes.masks:
        if (area := np.count_nonzero(mask, axis=others(axis))).any():
            return int(area.argmax())
    return volumes.image.shape[axis] // 2


def draw_case(figure: FigureBase, volumes: Volumes, *, name: str, height: float) -> None:
    """Draw the heading and the panels of one case into a part of the figure `height` inches tall."""
    box, shown = label_box(volumes), planes(volumes)
    middle = 1 - HEADING / height / 2
    figure.text(0.012, middle, name, color=INK, fontsize=10, va="center")
    ratios = [high for _, high in plane_sizes(volumes)]
    columns = 2 + len(volumes.predictions) + len(volumes.maps)
    axes: Array = figure.subplots(len(shown), columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    figure.subplots_adjust(left=0.03, right=0.988, bottom=0.012, top=1 - HEADING / height, wspace=0.03, hspace=0.05)
    window = np.percentile(volumes.image[box], (1, 99.5))
    for row, plane in zip(axes, shown, strict=True):
        draw_plane(row, volumes, plane=plane, box=box, window=window)
    headings = ["scan", "reference", *(f"{heading} (white: reference)" for heading in volumes.predictions)]
    headings += [f"{heading} (0 to {values[box].max():.2g})" for heading, values in volumes.maps.items()]
    for panel, heading in zip(axes[0], headings, strict=True):
        panel.set_title(heading, color=DIM, fontsize=9, pad=3)
    for panel, prediction in zip(axes[0][2:], volumes.predictions.values(), strict=False):  # maps come after them
        right = panel.get_position(original=True).x1
        write_scores(figure, dice(volumes.reference, prediction), at=(right, middle), step=0.27 / columns)


def draw_plane(row: Array, volumes: Volumes, *, plane: Plane, box: Box, window: Array) -> None:
    """Draw one row of panels: the plane's cut through the box of the labels, grey within `window`, and its maps."""
    cut = tuple(plane.place if i == plane.axis else part for i, part in enumerate(box))
    x, y = others(plane.axis)
    steps = volumes.spacing[x], volumes.spacing[y]
    image, (reference, *predictions) = volumes.image[cut].T, [mask[cut].T for mask in volumes.masks]
    flip, after = plane.axis == 2 or not plane.letters, 2 + len(predictions)
    for panel in row[:after]:
        show(panel, image, steps=steps, window=window, flip=flip)
    for panel, values in zip(row[after:], volumes.maps.values(), strict=True):
        window_of_map = np.array([0, float(values[box].max()) or 1])
        show(panel, values[cut].T, steps=steps, window=window_of_map, flip=flip, colours="inferno")
    outline(row[1], reference, steps=steps)
    for panel, prediction in zip(row[2:after], predictions, strict=True):
        outline(panel, reference, steps=steps, colour="white")
        outline(panel, prediction, steps=steps)
    row[0].set_ylabel(plane.name, color=DIM, fontsize=9)
    if plane.letters:
        mark_directions(row[0], plane.letters)


def write_scores(figure: FigureBase, scores: Mapping[int, float], *, at: tuple[float, float], step: float) -> None:
    """Write Dice coefficients in the colours of their labels, to the left of the place `at`, `step` apart."""
    for place, (label, score) in enumerate(reversed(list(scores.items()))):
        text = f"Dice {score:.3f}" if len(scores) == 1 else f"[{label}] {score:.3f}"
        right = at[0] - step * place
        figure.text(right, at[1], text, color=colour_of(label), fontsize=11, weight="bold", va="center", ha="right")


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


def show(
    panel: Axes, image: Array, *, steps: Sequence[float], window: Array, flip: bool, colours: str = "gray"
) -> None:
    """Show the plane `image` `(rows, columns)` in mm; `flip` puts row 0 at the top."""
    rows, columns = image.shape
    width, height = columns * steps[0], rows * steps[1]
    extent = (0.0, width, height, 0.0) if flip else (0.0, width, 0.0, height)
    origin: Literal["upper", "lower"] = "upper" if flip else "lower"
    low, high = window
    panel.imshow(
        image, cmap=colours, vmin=low, vmax=high, extent=extent, origin=origin, aspect="equal", interpolation="bilinear"
    )
    panel.set(xticks=[], yticks=[], facecolor=PAPER)
    panel.spines[:].set_visible(False)


def outline(panel: Axes, mask: Array, *, steps: Sequence[float], colour: str | None = None) -> None:
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
