"""Training batches of patches that show the classes in chosen shares (Noothout et al. 2022)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from monai.utils import MAX_SEED
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from .augmentation import changed, mirrored, turned
from .rotation import surround
from .shared.validation import InputError
from .windows import CRITERIA, WindowTable, rules_broken_by, window_shape

__all__ = ["PatchBatches", "class_shares", "cut"]

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Kind = tuple[int, bool]
Row = tuple[int, int | None, WindowTable]
Place = tuple[int, int | None, tuple[int, int, int]]
INTERPOLATIONS = ("linear", "spline")


def class_shares(ratios: Sequence[float], num_classes: int) -> list[float]:
    """Returns the share of the patches drawn for each class, in sum 1.

    Of two classes the first has the first ratio and the second all others, as in the reference, where 5, 3, 2 halves
    the patches between them.

    Raises:
        InputError: when there are not as many ratios as classes (of two classes: fewer), or a ratio is negative, or
            none is above 0.
    """
    if len(ratios) < num_classes or (len(ratios) > num_classes and num_classes != 2):
        raise InputError([("", "ratios", f"there must be one for each of {num_classes} classes, got {list(ratios)}")])
    if min(ratios) < 0 or not sum(ratios) > 0:
        raise InputError([("", "ratios", f"must be 0 or more, and one of them above 0, got {list(ratios)}")])
    last = num_classes - 1
    return [ratio / sum(ratios) for ratio in (*ratios[:last], sum(ratios[last:]))]


def cut(volume: Array, target: Array, *, corner: Sequence[int]) -> None:
    """Copies a box of a volume `(C, H, W, D)` into `target` `(C, h, w, d)`, which is kept where the volume ends.

    Args:
        volume: where the box is cut from; it must reach into it.
        target: what is written to.
        corner: first voxel of the box in the volume, negative before its borders.
    """
    inner, outer = [slice(None)], [slice(None)]
    for first, edge, size in zip(corner, target.shape[1:], volume.shape[1:], strict=True):
        start, stop = max(first, 0), min(first + edge, size)
        inner.append(slice(start - first, stop - first))
        outer.append(slice(start, stop))
    target[tuple(inner)] = volume[tuple(outer)]


class PatchBatches(Dataset[dict[str, torch.Tensor]], Randomizable):
    """Data set of whole batches; for a `DataLoader` with `batch_size=None`.

    For each patch a class is drawn by `ratios`, then case and axis, uniform over those that have an acceptable window,
    then the window, uniform over all of them, see `WindowTable`. The reference draws case and axis first and then tries
    windows until one is acceptable, for ever where there is none. Patches are rotated in their plane by angles from a
    normal distribution, cubes in one of the three planes, and scaled; labels are cut with their surroundings before, so
    that rotation brings no background into them. Then patches are mirrored and the values of images are changed.

    Batch i depends on i and on the seed that `set_random_state` was last given in the main process, not on workers.

    Args:
        volumes: cases with `image` `(1, H, W, D)`, `label` `(1, H, W, D)` of classes, perhaps `soft` `(C, H, W, D)`,
            probabilities of the classes, on the CPU, and perhaps the name `case`. They are read once here, for the
            tables of windows, and then for each batch.
        batch_size: B.
        length: batches in an epoch.
        num_classes: C.
        window: edge of the label's window in voxels.
        margin: how many voxels farther the image reaches on each side.
        axes: spatial axes across which slices are cut; `None` for cubes.
        criterion: where the class must be found, one of `CRITERIA`.
        ratios: see `class_shares`.
        full_background: p percent of the patches drawn for class 0 hold nothing else, none of the others does; exactly
            (p - 1) / 99 for a whole p from 1.
        rotation: standard deviation of the angle in degrees, 0 for none.
        interpolation: of rotated images, `linear` or, as in the reference and some six times slower, cubic `spline`;
            labels take the nearest voxel, soft labels are interpolated linearly.
        scaling: how much of the scan, in multiples of the window's edge, a window shows at least and at most, for
            example 0.8 and 1.25, drawn on a logarithmic scale; nothing for always 1. With it images too are cut with
            their surroundings, which are otherwise mirrored at the patch's border, as in the reference.
        mirror: spatial axes of the scan along which every other patch is mirrored.
        augmentation: random MONAI transforms of an image patch `(1, h, w)` or `(1, h, w, d)`, one after another.

    Raises:
        InputError: when a setting is out of its range, volumes of a case do not fit each other or the window, labels
            are no classes, soft labels no probabilities, or no case has a window of a class that is drawn.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, Any]],
        *,
        batch_size: int,
        length: int,
        num_classes: int,
        window: int,
        margin: int = 0,
        axes: Sequence[int] | None = (0, 1, 2),
        criterion: str = "entire-sample-area",
        ratios: Sequence[float] = (5, 3, 2),
        full_background: float = 0,
        rotation: float = 10.0,
        interpolation: str = "linear",
        scaling: Sequence[float] | None = None,
        mirror: Sequence[int] = (),
        augmentation: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.data = volumes
        self.batch_size, self.length, self.num_classes = batch_size, length, num_classes
        self.window, self.margin = window, margin
        self.axes = (None,) if axes is None else tuple(axes)
        self.criterion = criterion
        self.full_background = full_background
        self.rotation, self.interpolation = rotation, interpolation
        self.scaling = tuple(scaling or ())
        self.mirror = tuple(mirror)
        self.augmentation = Compose(augmentation)
        problems = [("", name, rule) for name, rule in self._broken_settings()]
        if problems:
            raise InputError(problems)
        self.shares = class_shares(ratios, num_classes)
        self.keys = ("image", "label", "soft") if len(volumes) and "soft" in volumes[0] else ("image", "label")
        # Beyond the surroundings of the window nothing turns into it; beyond the image labels are mirrored as it is.
        self.border = surround(window, zoom=max(self.scaling)) if self.scaling else 0
        self.label_margin = self.border or (min(margin, surround(window)) if rotation else 0)
        self.tables = self._find_windows()
        self.set_random_state()

    def _broken_settings(self) -> Iterator[tuple[str, str]]:
        limits = {"batch_size": 1, "length": 1, "num_classes": 2, "window": 1, "margin": 0, "rotation": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                yield name, f"must be {least} or more, got {getattr(self, name)}"
        if not 0 <= self.full_background <= 100:
            yield "full_background", f"must be a percentage, 0 to 100, got {self.full_background}"
        yield from self._broken_choices()
        if not len(self.data):
            yield "volumes", "there is no case"

    def _broken_choices(self) -> Iterator[tuple[str, str]]:
        if self.axes != (None,) and not (self.axes and set(self.axes) <= {0, 1, 2}):
            yield "axes", f"must be among 0, 1 and 2, got {list(self.axes)}"
        if self.criterion not in CRITERIA:
            yield "criterion", f"must be one of {', '.join(CRITERIA)}, got {self.criterion}"
        if self.interpolation not in INTERPOLATIONS:
            yield "interpolation", f"must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation}"
        if self.scaling and not (len(self.scaling) == 2 and 0 < self.scaling[0] <= 1 <= self.scaling[1]):
            yield "scaling", f"must be two numbers around 1, none of them 0, got {list(self.scaling)}"
        if not set(self.mirror) <= {0, 1, 2}:
            yield "mirror", f"must be among 0, 1 and 2, got {list(self.mirror)}"

    def _find_windows(self) -> dict[Kind, list[Row]]:
        """Checks all cases and returns the tables that are not empty, for each kind of patch that is drawn."""
        found: dict[Kind, list[Row]] = {kind: [] for kind in self._kinds()}
        needed = np.max([window_shape(self.window, axis) for axis in self.axes], axis=0).tolist()
        names, problems = [], []
        for case in tqdm(range(len(self.data)), "Finding windows", unit="case"):
            item = self.data[case]
            names.append(str(item.get("case", case)))
            broken = list(rules_broken_by(item, self.keys, num_classes=self.num_classes, needed=needed))
            problems += [(names[-1], key, rule) for key, rule in broken]
            if broken:
                continue
            label = np.asarray(item["label"])[0]
            for (required, full), axis in product(found, self.axes):
                kind: dict[str, Any] = {"criterion": self.criterion, "required": required, "full": full}
                table = WindowTable(label, self.window, axis=axis, **kind)
                if len(table):
                    found[required, full].append((case, axis, table))
        if problems:
            raise InputError(problems)
        _report_missing(found, names)
        return found

    def _kinds(self) -> list[Kind]:
        """Returns the kinds of patches that are drawn: a class, and whether it fills the patch."""
        kinds = [(index, False) for index, share in enumerate(self.shares) if share]
        if self.shares[0]:
            mixed, pure = self.full_background <= 99, self.full_background > 1
            kinds = [(0, True)] * pure + kinds[not mixed :]
        return kinds

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PatchBatches:
        """Sets the seed that batches are drawn by; in a worker of a `DataLoader` it stays that of the main process."""
        if get_worker_info() is None:
            super().set_random_state(seed, state)
            self.seed = int(self.R.randint(MAX_SEED, dtype=np.uint32))
        return self

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns batch `index` of the epoch.

        Returns:
            `image` `(B, 1, h, w)`, float32, with h = w = `window` + 2 `margin`, 0 outside the volume; `label`
            `(B, 1, h, w)`, int64, with h = w = `window`; `soft` `(B, C, h, w)`, float32, like the label, in sum 1 over
            the classes, all class 0 outside the volume. Cubes `(B, C, h, w, d)` likewise.

        Raises:
            IndexError: when the epoch has not so many batches.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"batch {index} of {self.length}")
        generator = np.random.default_rng((self.seed, index))
        places = self._draw(generator)
        batch = self._cut(places)
        if self.rotation or self.scaling:
            batch = self._turned(batch, generator)
        if self.mirror:
            batch = mirrored(batch, [axis for _, axis, _ in places], along=self.mirror, generator=generator)
        if self.augmentation.transforms:
            batch["image"] = changed(batch["image"], self.augmentation, generator=generator)
        if "soft" in batch:
            batch["soft"] /= batch["soft"].sum(1, keepdim=True)
        return {**batch, "label": batch["label"].long()}

    def _draw(self, generator: np.random.Generator) -> list[Place]:
        """Draws class, case, axis and window of each patch."""
        classes = generator.choice(self.num_classes, self.batch_size, p=self.shares)
        full = (classes == 0) & (generator.integers(1, 100, self.batch_size) < self.full_background)
        places = []
        for kind in zip(classes.tolist(), full.tolist(), strict=True):
            rows = self.tables[kind]
            case, axis, table = rows[int(generator.integers(len(rows)))]
            places.append((case, axis, table.draw(generator)))
        return places

    def _cut(self, places: Sequence[Place]) -> dict[str, torch.Tensor]:
        """Cuts the patches, labels with the surroundings that rotation turns into the window."""
        items = {case: self.data[case] for case in {case for case, _, _ in places}}
        batch = {}
        for key in self.keys:
            margin = self.margin + self.border if key == "image" else self.label_margin
            patches = self._outside(key, len(places), edge=self.window + 2 * margin)
            volumes = {case: np.asarray(item[key]) for case, item in items.items()}
            for patch, (case, axis, corner) in zip(patches, places, strict=True):
                target = patch if axis is None else patch[(slice(None),) * (axis + 1) + (None,)]
                first = [place - margin * (along != axis) for along, place in enumerate(corner)]
                cut(volumes[case], target, corner=first)
            batch[key] = torch.from_numpy(patches)
        return batch

    def _outside(self, key: str, count: int, *, edge: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns patches of what lies outside the volume: 0, or soft labels of class 0."""
        edges = [edge] * (3 if self.axes == (None,) else 2)
        patches = np.zeros((count, self.num_classes if key == "soft" else 1, *edges), np.float32)
        patches[:, 0] = key == "soft"
        return patches

    def _turned(self, batch: Mapping[str, torch.Tensor], generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Returns the middle of patches that are rotated and scaled."""
        angles = torch.from_numpy(generator.normal(0, self.rotation, self.batch_size))
        fixed = torch.from_numpy(generator.integers(3, size=self.batch_size)) if self.axes == (None,) else None
        zooms = None
        if self.scaling:
            least, most = (math.log(zoom) for zoom in self.scaling)
            zooms = torch.from_numpy(np.exp(generator.uniform(least, most, self.batch_size)))
        modes = {"image": self.interpolation, "label": "nearest", "soft": "linear"}
        margins = {"image": self.margin, "label": 0, "soft": 0}
        return {
            key: turned(patches, angles, fixed=fixed, size=self.window + 2 * margins[key], mode=modes[key], zooms=zooms)
            for key, patches in batch.items()
        }


def _report_missing(found: Mapping[Kind, Sequence[Row]], names: Sequence[str]) -> None:
    """Warns of cases without a window of some class; none at all is an error."""
    problems = []
    for (required, full), rows in found.items():
        what = f"class {required}" + " alone" * full
        if not rows:
            problems.append(("", "ratios", f"patches of {what} are asked for, but no case has a window of them"))
        having = {case for case, _, _ in rows}
        lacking = [name for case, name in enumerate(names) if case not in having]
        if lacking:
            logger.warning("No window of %s in %d case(s): %s", what, len(lacking), ", ".join(lacking))
    if problems:
        raise InputError(problems)
