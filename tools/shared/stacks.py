"""What holds for short-axis stacks of the heart: where slices lie, which label is which structure, `Info.cfg`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.utils import affine_to_spacing
from numpy.typing import NDArray

from .lists import read_text
from .validation import InputError

__all__ = ["STRUCTURES", "check_order", "read_info", "rules_of_axes", "rules_of_label", "rules_of_stack"]

STRUCTURES = ("RV", "MYO", "LV")
ENCLOSED = 0.75  # of the outline; at least 0.99 of a cavity's is myocardium in ACDC, at most 0.46 in any other pair


def check_order(label_order: Sequence[str]) -> None:
    """Checks that an order of structures, those of the label values 1, 2 and 3, has each once.

    Raises:
        InputError: when it does not.
    """
    if sorted(label_order) != sorted(STRUCTURES):
        raise InputError([("", "label_order", f"must order {', '.join(STRUCTURES)}, got {list(label_order)}")])


def rules_of_stack(
    volumes: Mapping[str, Any], *, label: str | None, label_order: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yields the key of a volume and the rule that it breaks, of a case's `image` and its `label`, if any."""
    yield from (("image", rule) for rule in rules_of_axes(volumes["image"].shape, affine=volumes["image"].affine))
    if label is not None:
        voxels = np.asarray(getattr(volumes[label], "dataobj", volumes[label]))
        yield from ((label, rule) for rule in rules_of_label(voxels, label_order))


def rules_of_axes(shape: Sequence[int], *, affine: Any) -> Iterator[str]:
    """Yields a rule if the slices of an image do not lie along the third axis."""
    spacing = np.asarray(affine_to_spacing(np.asarray(affine), 3))
    if shape[2] > 1 and spacing[2] < spacing.max() - 1e-3:
        millimetres = " x ".join(f"{size:.3g}" for size in spacing)
        yield f"slices must lie along the third axis, where voxels are longest; they are {millimetres} mm"


def rules_of_label(label: NDArray[Any], label_order: Sequence[str]) -> Iterator[str]:
    """Yields what contradicts an order: the left cavity is enclosed by myocardium in every slice, nothing else is.

    Args:
        label: label map `(H, W, D)` of the values 0 to 3.
        label_order: structures of the values 1, 2 and 3.
    """
    enclosed = _enclosure(label.astype(np.int64))
    claimed = tuple(label_order.index(name) + 1 for name in ("LV", "MYO"))
    for cavity, wall in permutations((1, 2, 3), 2):
        if enclosed[cavity, wall] > ENCLOSED > enclosed[claimed]:
            yield (
                f"contradicts label_order {list(label_order)}: value {cavity} is enclosed by value {wall}, "
                "as LV is by MYO"
            )


def _enclosure(label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns in `[a, b]` the share of the outline of value a in the slices `[..., z]` that borders on value b.

    Args:
        label: label map `(H, W, D)` of the values 0 to 3.
    """
    borders = np.zeros((4, 4))
    for one, other in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
        pairs = np.bincount((4 * one + other).ravel(), minlength=16).reshape(4, 4)
        borders += pairs + pairs.T
    np.fill_diagonal(borders, 0)
    return borders / np.maximum(borders.sum(axis=1, keepdims=True), 1)


def read_info(path: Path) -> dict[str, str]:
    """Entries `key: value` of an `Info.cfg`, in any of the encodings of `read_text`; empty where there is none.

    Raises:
        InputError: when it cannot be read, or a key has two values.
    """
    if not path.is_symlink() and not path.exists():
        return {}
    lines = read_text(path, kind=path.name).splitlines()
    pairs = dict.fromkeys((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1 and key]
    if twice:
        raise InputError([(path.parent.name, str(path), f"{twice[0]} has two values")])
    return dict(pairs.keys())
