"""Slices of DICOM as one volume: in the order in which they lie on a regular grid, or why on none, and their voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from .geometry import FRACTION, VolumeError
from .slices import ORDER, Header, Slice, pydicom_module, reading

__all__ = ["ordered", "read_voxels"]

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
            raise VolumeError(f"{header.problem}: {header.name()}")
    uids: dict[str, Header] = {}
    for header in headers:
        if (same := uids.setdefault(header.uid, header)) is not header:
            raise VolumeError(f"holds one image twice: {same.name()} and {header.name()}")
    for what, of in (("size", "size"), ("frame of reference", "reference")):
        first = headers[0]
        if other := next((header for header in headers if getattr(header, of) != getattr(first, of)), None):
            values = f"{getattr(first, of)} and {getattr(other, of)}"
            raise VolumeError(f"holds images of more than one {what}: {first.name()} and {other.name()}, {values}")


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
    count = _count(groups)
    ranked, how = (groups, "") if count == 1 else _ranked(groups)
    if phase is None and count == 1:
        phase = 0
    if phase is None or not 0 <= phase < count:
        rule = f"holds {count} images at each of {len(groups)} positions{how}"
        raise VolumeError(f"{rule}: choose one with phase, 0 to {count - 1}")
    return [group[phase] for group in ranked]


def _count(groups: Sequence[Sequence[Slice]]) -> int:
    """Returns how many images lie at a position, of which all must have as many."""
    least, most = min(groups, key=len), max(groups, key=len)
    if len(least) < len(most):
        names = ", ".join(piece.name() for piece in most[:3])
        rule = f"holds {len(least)} to {len(most)} images at one position, {len(most)} where {names} lie"
        raise VolumeError(f"{rule}: images are missing, or of several stacks")
    return len(most)


def _ranked(groups: Sequence[Sequence[Slice]]) -> tuple[list[list[Slice]], str]:
    """Returns the images at each position in the order of what tells them apart, and what that is, for messages."""
    if len(kinds := {piece.kind for group in groups for piece in group}) > 1:
        shown = " and ".join("\\".join(kind) for kind in sorted(kinds)[:2])
        raise VolumeError(f"holds images of several kinds at one position, {shown}: {groups[0][0].name()}")
    place = _telling(groups)
    ranked = [sorted(group, key=lambda piece: piece.order[place] or 0.0) for group in groups]
    first, last = ranked[0][0].order[place], ranked[0][-1].order[place]
    return ranked, f", which differ in {list(ORDER)[place]} ({first:g} to {last:g})"


def _telling(groups: Sequence[Sequence[Slice]]) -> int:
    """Returns which value of `Slice.order` tells the images of every position apart; counters, if no other differs."""
    meaning = range(len(ORDER) - COUNTERS)
    differing = [place for place in meaning if max(map(len, _values(groups, place))) > 1]
    for place in differing or range(len(meaning), len(ORDER)):
        if all(len(values) == len(groups[0]) and None not in values for values in _values(groups, place)):
            return place
    names = ", ".join(list(ORDER)[place] for place in differing)
    why = f"differ in {names}, but not all" if differing else "do not say in what they differ"
    raise VolumeError(f"holds {len(groups[0])} images at one position, which {why}: {groups[0][0].name()}")


def _values(groups: Sequence[Sequence[Slice]], place: int) -> list[set[float | None]]:
    return [{piece.order[place] for piece in group} for group in groups]


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


def read_voxels(slices: Sequence[Slice], *, size: tuple[int, int], dtype: str | None) -> NDArray[Any]:
    """Returns the voxels `(columns, rows, slices)`, each slice by its own slope and intercept.

    Args:
        slices: in the order wanted.
        size: rows and columns of each.
        dtype: of the stored values, if all slices have the same.

    Returns:
        The stored type where no slice is scaled, else float32.

    Raises:
        VolumeError: naming the file whose pixels are missing, too few, damaged, or compressed so that no installed
            package can decode them.
    """
    plain = dtype is not None and all(piece.scale == (1, 0) for piece in slices)
    voxels = np.empty((size[1], size[0], len(slices)), dtype if plain else np.float32, order="F")
    places: dict[str, list[int]] = {}
    for place, piece in enumerate(slices):
        places.setdefault(piece.file, []).append(place)
    for file, wanted in places.items():
        with reading(Path(file).name):
            pixels = _pixels(file).reshape(-1, *size)
            for place in wanted:
                slope, intercept = slices[place].scale
                stored = pixels[slices[place].frame].T
                voxels[..., place] = stored if plain else stored * slope + intercept
    return voxels


def _pixels(file: str) -> NDArray[Any]:
    dataset = pydicom_module().dcmread(file)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not _has_decoder(syntax):
        rule = f"is compressed as {syntax.name}, and no decoder of it is installed: pip install python-gdcm"
        raise VolumeError(f"cannot be read: {Path(file).name} {rule}")
    return np.asarray(dataset.pixel_array)


def _has_decoder(syntax: Any) -> bool:
    get_decoder, _ = optional_import("pydicom.pixels", name="get_decoder")
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
