"""Slices of DICOM in the order in which they lie, on one regular grid, or why they are on none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .geometry import FRACTION, VolumeError
from .slices import ORDER, Header, Slice

__all__ = ["ordered"]

NEAR = 0.05  # mm by which images of one position may be apart
COUNTERS = 2  # of ORDER at its end, which do not tell what an image shows

Vector = NDArray[np.float64]


def ordered(headers: Sequence[Header], *, phase: int | None = None) -> tuple[list[Slice], NDArray[np.float64]]:
    """Returns the slices of one volume from one side to the other, and its affine `(4, 4)` to RAS in mm.

    The axes are those along a row, down a column, and from slice to slice, which make a right-handed system. Slices
    that are moved within their plane (gantry tilt) give a sheared affine, which `volumes.read_volume` rejects.

    Args:
        headers: of all files.
        phase: which of several images at each position.

    Raises:
        VolumeError: when a file is no image of a scan, an image is there twice, sizes, voxel sizes, orientations or
            frames of reference differ, there are several images at one position and no phase, or other numbers of them
            at others, there is one position only, or slices are missing or uneven; with the names of files.
    """
    _check_headers(headers)
    slices = [piece for header in headers for piece in header.slices]
    row, column = _axes(slices, headers[0].size)
    normal = np.cross(row, column)
    pieces = _of_phase(_positions(slices, normal), phase)
    places = np.array([piece.position for piece in pieces])
    step = _step(pieces, places, normal)
    vertical, horizontal = pieces[0].spacing
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * horizontal, column * vertical, step, places[0]])
    return pieces, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_headers(headers: Sequence[Header]) -> None:
    for header in headers:
        if header.problem:
            raise VolumeError(f"{header.problem}: {_name(header)}")
    uids: dict[str, Header] = {}
    for header in headers:
        if (same := uids.setdefault(header.uid, header)) is not header:
            raise VolumeError(f"holds one image twice: {_name(same)} and {_name(header)}")
    for what, of in (("size", "size"), ("frame of reference", "reference")):
        first = headers[0]
        if other := next((header for header in headers if getattr(header, of) != getattr(first, of)), None):
            values = f"{getattr(first, of)} and {getattr(other, of)}"
            raise VolumeError(f"holds images of more than one {what}: {_name(first)} and {_name(other)}, {values}")


def _name(header: Header) -> str:
    return header.file.replace("\\", "/").rpartition("/")[2]


def _axes(slices: Sequence[Slice], size: Sequence[int]) -> tuple[Vector, Vector]:
    """Returns the unit vectors along a row and down a column, which all slices must share."""
    first = slices[0]
    for piece in slices:
        if not np.allclose(piece.spacing, first.spacing, rtol=1e-3, atol=0) or min(piece.spacing) <= 0:
            values = f"{list(first.spacing)} and {list(piece.spacing)}"
            raise VolumeError(f"holds images of more than one voxel size: {first.name()} and {piece.name()}, {values}")
    lengths = np.repeat([size[1] * first.spacing[1], size[0] * first.spacing[0]], 3)  # mm of a row, of a column
    turned = np.array([piece.orientation for piece in slices]) - first.orientation
    off = np.linalg.norm((turned * lengths).reshape(-1, 2, 3), axis=-1).max(axis=-1)
    if (most := int(off.argmax())) and off[most] > FRACTION * min(first.spacing):
        rule = f"holds images of more than one orientation: {first.name()} and {slices[most].name()}"
        raise VolumeError(rule)
    row, column = np.array(first.orientation).reshape(2, 3)
    axes = np.array([row, column])
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
        raise VolumeError(f"has axes that are no unit vectors at right angles: {first.name()}")
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _positions(slices: Sequence[Slice], normal: Vector) -> list[list[Slice]]:
    """Returns the images at each position, from one side to the other."""
    depths = {id(piece): float(normal @ piece.position) for piece in slices}
    groups: list[list[Slice]] = []
    last = -np.inf
    for piece in sorted(slices, key=lambda piece: depths[id(piece)]):
        if depths[id(piece)] - last > NEAR:
            groups.append([])
        groups[-1].append(piece)
        last = depths[id(piece)]
    if len(groups) < 2:
        count = f"{len(slices)} images" if len(slices) > 1 else "one image"
        raise VolumeError(f"holds {count} of one position, a scan has more positions: {slices[0].name()}")
    return groups


def _of_phase(groups: Sequence[Sequence[Slice]], phase: int | None) -> list[Slice]:
    """Returns one image of each position."""
    counts = sorted({len(group) for group in groups})
    if counts == [1] and not phase:
        return [group[0] for group in groups]
    if len(counts) > 1:
        most = max(groups, key=len)
        names = ", ".join(piece.name() for piece in most[:3])
        rule = f"holds {counts[0]} to {counts[-1]} images at one position, {counts[-1]} where {names} lie"
        raise VolumeError(f"{rule}: images are missing, or of several stacks")
    place = _telling(groups)
    ranked = [sorted(group, key=lambda piece: piece.order[place] or 0.0) for group in groups]
    if phase is None or not 0 <= phase < counts[0]:
        rule = f"holds {counts[0]} images at each of {len(groups)} positions"
        if counts[0] > 1:
            ends = (f"{ranked[0][index].order[place]:g}" for index in (0, -1))
            rule += f", which differ in {list(ORDER)[place]} ({' to '.join(ends)})"
        raise VolumeError(f"{rule}: choose one with phase, 0 to {counts[0] - 1}")
    return [group[phase] for group in ranked]


def _telling(groups: Sequence[Sequence[Slice]]) -> int:
    """Returns which value of `Slice.order` tells the images of every position apart."""
    example = groups[0]
    if len(kinds := {piece.kind for group in groups for piece in group}) > 1:
        shown = " and ".join("\\".join(kind) for kind in sorted(kinds)[:2])
        raise VolumeError(f"holds images of several kinds at one position, {shown}: {example[0].name()}")
    varying: list[str] = []
    for place in range(len(ORDER)):
        values = [[piece.order[place] for piece in group] for group in groups]
        if any(len(set(found)) > 1 for found in values):
            if all(None not in found and len(set(found)) == len(found) for found in values):
                if place < len(ORDER) - COUNTERS or not varying:
                    return place
            elif place < len(ORDER) - COUNTERS:
                varying.append(list(ORDER)[place])
    why = f"differ in {', '.join(varying)}, but not all" if varying else "do not say in what they differ"
    raise VolumeError(f"holds {len(example)} images at one position, which {why}: {example[0].name()}")


def _step(pieces: Sequence[Slice], places: Vector, normal: Vector) -> Vector:
    """Returns the vector in mm from slice to slice; all must lie within a small part of a voxel of that grid."""
    gaps = np.diff(places @ normal)
    usual = float(np.median(gaps))
    most = int(np.abs(gaps - usual).argmax())
    between = f"{pieces[most].name()} and {pieces[most + 1].name()} are {gaps[most]:.4g} mm apart"
    if (missing := round(float(gaps[most]) / usual) - 1) >= 1:
        count = f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
        raise VolumeError(f"has a gap, where {count}: {between}, others {usual:.4g} mm")
    step = (places[-1] - places[0]) / (len(places) - 1)
    off = places - (places[0] + np.arange(len(places))[:, None] * step)
    along = np.abs(off @ normal)
    if max(along.max() / usual, np.abs(gaps - usual).max() / usual / 2) > FRACTION:
        raise VolumeError(f"has slices that are not evenly apart: {between}, others {usual:.4g} mm")
    within = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if within.max() > FRACTION * min(pieces[0].spacing):
        rule = f"has slices that are moved within their plane, by up to {within.max():.3g} mm"
        raise VolumeError(f"{rule}: {pieces[int(within.argmax())].name()}")
    return step
