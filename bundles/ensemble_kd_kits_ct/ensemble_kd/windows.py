"""Tables of all windows of a label volume that training patches of one class may be cut from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .shared.validation import InputError

__all__ = ["CRITERIA", "WindowTable", "rules_broken_by", "window_shape"]

SUM_TOLERANCE = 0.02  # of soft labels; files of 8 bits round each class by 1/510
CRITERIA = ("entire-sample-area", "patch-center-voxel")

Array = NDArray[Any]
Corner = tuple[int, int, int]


def window_shape(window: int, axis: int | None) -> Corner:
    """Returns a window's size in voxels: a square of one slice across `axis`, a cube where `axis` is `None`."""
    first, second, third = (1 if axis == along else window for along in range(3))
    return first, second, third


class WindowTable:
    """All windows of a volume that a patch of one class may show, to draw from in O(log n).

    A window is acceptable (Noothout et al. 2022, reference implementation) when the class is found in it: anywhere
    (`entire-sample-area`) or at its centre, voxel `window // 2` (`patch-center-voxel`). For class 0 it must also hold
    a voxel of another class or, with `full`, nothing but class 0. Every window within the volume counts, those at its
    far borders too, which the reference never draws. A volume smaller than the window has none.

    The windows are kept as runs along the last axis: where each ends, and how many windows there are up to its end.

    Args:
        label: classes `(H, W, D)`.
        window: edge of the window in voxels.
        axis: across which slices are cut, 0 to 2; `None` for cubes.
        criterion: one of `CRITERIA`.
        required: the class.
        full: whether windows of class 0 alone are wanted; for class 0 only.

    Raises:
        InputError: when the criterion is another, or `full` is asked for of another class than 0.
    """

    def __init__(
        self, label: Array, window: int, *, axis: int | None, criterion: str, required: int, full: bool = False
    ) -> None:
        if criterion not in CRITERIA:
            raise InputError([("", "criterion", f"must be one of {', '.join(CRITERIA)}, got {criterion}")])
        if full and required:
            raise InputError([("", "full", f"is for class 0 only, got class {required}")])
        shape = window_shape(window, axis)
        first, second, third = (max(0, size - edge + 1) for size, edge in zip(label.shape, shape, strict=True))
        self.grid = first, second, third
        flat = np.zeros(first * second * third + 2, np.int8)
        if len(flat) > 2:
            flat[1:-1] = _acceptable(label, shape, criterion=criterion, required=required, full=full).ravel()
        edges = np.flatnonzero(np.diff(flat))
        small = np.min_scalar_type(len(flat))
        self.ends = edges[1::2].astype(small)
        self.totals = np.cumsum(edges[1::2] - edges[::2]).astype(small)

    def __len__(self) -> int:
        """Returns how many windows there are."""
        return int(self.totals[-1]) if len(self.totals) else 0

    def __getitem__(self, index: int) -> Corner:
        """Returns the first voxel of window `index`; they are in the order of their voxels in memory.

        Raises:
            IndexError: when there are not so many windows.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        run = np.searchsorted(self.totals, index, side="right")
        place = int(self.ends[run]) - int(self.totals[run]) + index
        rest, third = divmod(place, self.grid[2])
        return *divmod(rest, self.grid[1]), third

    def draw(self, generator: np.random.Generator) -> Corner:
        """Returns the first voxel of one of the windows, each as likely as any other."""
        return self[int(generator.integers(len(self)))]


def _acceptable(label: Array, shape: Corner, *, criterion: str, required: int, full: bool) -> Array:
    """Which windows are acceptable, by their first voxels."""
    at_centre = criterion == "patch-center-voxel"
    sizes = zip(label.shape, shape, strict=True)
    centre = label[tuple(slice(edge // 2, size - (edge - 1) // 2) for size, edge in sizes)]
    if required:
        return centre == required if at_centre else _counts(label == required, shape) > 0
    others = _counts(label != 0, shape)
    if full:
        return others == 0
    return (others > 0) & (centre == 0 if at_centre else others < np.prod(shape))


def _counts(mask: Array, shape: Corner) -> Array:
    """Number of voxels of the mask in every window; sums are only taken of windows that touch the mask's box."""
    grid = [size - edge + 1 for size, edge in zip(mask.shape, shape, strict=True)]
    counts = np.zeros(grid, np.int32)
    near, touching = [], []
    for axis, edge in enumerate(shape):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(hit):
            return counts
        first, last = max(0, int(hit[0]) - edge + 1), min(grid[axis] - 1, int(hit[-1]))
        touching.append(slice(first, last + 1))
        near.append(slice(first, last + edge))
    sums = mask[tuple(near)].astype(np.int32)
    for axis, edge in enumerate(shape):
        if edge > 1:
            upright = np.moveaxis(sums, axis, 0)
            total = np.concatenate([np.zeros_like(upright[:1]), upright.cumsum(0, dtype=np.int32)])
            sums = np.moveaxis(total[edge:] - total[:-edge], 0, axis)
    counts[tuple(touching)] = sums
    return counts


def rules_broken_by(
    case: Mapping[str, Any], keys: Sequence[str], *, num_classes: int, needed: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields what keeps patches from being cut from a case, as key and rule.

    Args:
        case: `image` and `label` `(1, H, W, D)`, perhaps `soft` `(num_classes, H, W, D)`.
        keys: which of them all cases have.
        num_classes: of the labels.
        needed: least size of the volumes in voxels.
    """
    odd = {"image", "label", "soft"} & (set(keys) ^ set(case))
    if odd:
        yield min(odd), "must be there in all cases or, soft labels only, in none"
        return
    label = torch.as_tensor(case["label"])
    for key in keys:
        shape = [num_classes if key == "soft" else 1, *label.shape[1:]]
        if list(case[key].shape) != shape or len(shape) != 4:
            yield key, f"its shape must be {shape}, with the label's size, got {list(case[key].shape)}"
            return
    yield from _broken_by_values(case, keys, num_classes=num_classes, needed=needed)


def _broken_by_values(
    case: Mapping[str, Any], keys: Sequence[str], *, num_classes: int, needed: Sequence[int]
) -> Iterator[tuple[str, str]]:
    label = torch.as_tensor(case["label"])
    if any(size < least for size, least in zip(label.shape[1:], needed, strict=True)):
        yield "label", f"its size {list(label.shape[1:])} is below the window's, {list(needed)}: set pad_small"
    elif label.min() < 0 or label.max() >= num_classes or (label != label.round()).any():
        yield "label", f"must hold classes, 0 to {num_classes - 1}"
    if "soft" in keys:
        soft = torch.as_tensor(case["soft"]).float()
        # Within what half precision makes of probabilities.
        if not (soft.min() >= 0 and ((soft.sum(0) - 1).abs() < SUM_TOLERANCE).all()):
            yield "soft", "must be probabilities: 0 or more, and 1 in sum over the classes"
