"""Checks of the user's scans before any long work starts: every problem named by case, file and rule, all at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from tqdm import tqdm

from .geometry import apart, same_grid
from .verdicts import Verdicts, by_first_process, torchrun_store
from .volumes import VolumeError, first_cause, read_volume, renumbered, voxels_of

__all__ = ["InputError", "check_cases", "check_sizes", "install_excepthook", "problems_of_splits"]

Case = Mapping[str, Any]
Problem = tuple[str, str, str]
Further = Callable[[Case, Mapping[str, Nifti1Image]], Iterable[tuple[str, str]]]

THREADS = 4  # and as many cases in memory
LARGEST = float(np.finfo(np.float32).max)  # what networks see


class InputError(ValueError):
    """What the user gave breaks rules; the message has one line per problem: case, file, rule."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        lines = [f"{f'case {case}: ' if case else ''}{file}: {rule}" for case, file, rule in problems]
        super().__init__("\n  ".join([f"{len(lines)} problem(s) in the input, nothing was started:", *lines]))


def install_excepthook() -> None:
    """Lets an uncaught `InputError` end the program with its message alone, not with MONAI's chain of wrappers.

    So do a training that diverged, and an error of the system that names a file, a full disk for example. Of several
    processes under `torchrun` that end with the same message, one prints it.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = first_cause(error, until=InputError)
        if not (isinstance(cause, InputError | FloatingPointError) or (isinstance(cause, OSError) and cause.filename)):
            sys.__excepthook__(kind, error, trace)
        elif _is_first_to_say(str(cause)):
            sys.stderr.write(f"\n{cause}\n")

    sys.excepthook = hook


def _is_first_to_say(message: str) -> bool:
    try:
        store = torchrun_store()
        return store is None or bool(store.add(f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {message}", 1) == 1)
    except RuntimeError:  # gone, as the machine that kept it
        return True


def case_name(case: Case) -> str:
    """Returns the name of a case: its entry `case`, else the name of its image file, if it is still one."""
    image = case.get("image")
    return str(case.get("case") or (Path(image).name if isinstance(image, str | Path) else "without name"))


def check_cases(
    splits: Sequence[Sequence[Case]],
    *,
    images: Sequence[str] = ("image",),
    stacks: Collection[str] = (),
    label: str | None = "label",
    label_values: Sequence[Sequence[int]] = ((0, 1),),
    foreground: bool = True,
    further: Further | None = None,
    settings: Any = None,
) -> None:
    """Reads every file of every case once, to its end, and checks it; cheap rules come first.

    A case that was found good before is not read again, unless a file of it or a rule has changed; of several processes
    on one machine, the first checks for all. At most four cases are in memory at a time.

    Args:
        splits: lists of cases, for example training and validation; no file may occur in two of them.
        images: keys of the images, each a path to a 3D volume; those that a case lacks are not asked for.
        stacks: those of them that are 4D, with channels along the last axis.
        label: key of the label map, `None` when there is none.
        label_values: the sets of values of which a label map may hold a subset of one.
        foreground: whether a label map must hold anything but 0.
        further: from a case that keeps the rules above, and its volumes by key, to the key and rule of others broken.
        settings: all that `further` depends on beside the case and its volumes, as what JSON can hold.

    Raises:
        InputError: when a split is empty, a case is in two splits, `volumes.read_volume` rejects a file, a volume is
            not 3D or not finite, an image is the same everywhere, an image and its label differ in shape or affine, a
            label map holds other values or none, or `further` finds anything.
    """
    problems = list(problems_of_splits(splits, images))
    if problems:
        raise InputError(problems)
    keys = [*images, *([] if label is None else [label])]
    rules: dict[str, Any] = {"label": label, "label_values": label_values, "foreground": foreground, "stacks": stacks}

    def problems_of(case: Case) -> list[Problem]:
        volumes: dict[str, Nifti1Image] = {}
        found = list(_problems_of_case(case, [key for key in keys if key in case], volumes=volumes, **rules))
        if further is not None and not found:
            found = [(case_name(case), str(case[key]), rule) for key, rule in further(case, volumes)]
        return found

    every = [
        {**case, **{key: str(Path(case[key]).absolute()) for key in keys if key in case}}
        for split in splits
        for case in split
    ]
    asked = {**rules, "stacks": sorted(stacks), "keys": keys, "settings": settings}
    problems = by_first_process(lambda: _problems(every, problems_of, asked), [every, asked])
    if problems:
        raise InputError(problems)


def _problems(cases: Sequence[Case], problems_of: Callable[[Case], list[Problem]], rules: Any) -> list[Problem]:
    """Returns what is wrong with all cases that were not found good before."""
    verdicts = Verdicts(rules)

    def look(case: Case) -> list[Problem]:
        key = verdicts.key(case)
        if key in verdicts.good:
            return []
        found = problems_of(case)
        if not found and verdicts.key(case) == key:  # nobody has written to it meanwhile
            verdicts.new.append(key)
        return found

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = tqdm(pool.map(look, cases), "Checking scans", len(cases), unit="case")
        problems = [problem for case in found for problem in case]
    verdicts.save()
    return problems


def check_sizes(divisor: int, **sizes: Sequence[int]) -> None:
    """Checks that a network can halve its inputs as often as it does.

    Args:
        divisor: what every size must be a multiple of, in voxels.
        sizes: names from the config and sizes in voxels.

    Raises:
        InputError: when a size is no positive multiple of `divisor`.
    """
    problems = [
        ("", name, f"must be multiples of {divisor}, got {list(size)}")
        for name, size in sizes.items()
        if any(voxels < 1 or voxels % divisor for voxels in size)
    ]
    if problems:
        raise InputError(problems)


def problems_of_splits(splits: Sequence[Sequence[Case]], images: Sequence[str]) -> Iterator[Problem]:
    """Yields the splits without a case, and the cases of which the first of `images` is in two splits."""
    seen: dict[Path, int] = {}
    for index, split in enumerate(splits):
        if not split:
            yield "", f"split {index + 1}", "holds no case"
        for case in split:
            path = Path(next(case[key] for key in images if key in case)).resolve()
            if seen.setdefault(path, index) != index:
                yield case_name(case), str(path), "is in two splits"


def _problems_of_case(
    case: Case,
    keys: Sequence[str],
    *,
    label: str | None,
    stacks: Collection[str],
    volumes: dict[str, Nifti1Image],
    label_values: Sequence[Sequence[int]],
    foreground: bool,
) -> Iterator[Problem]:
    """Reads the files of a case into `volumes` and yields what is wrong with them."""
    for key in keys:
        name, path = case_name(case), str(case[key])
        try:
            volumes[key] = read_volume(path, dimensions=[4 if key in stacks else 3])
            if key == label and case.get("label_values"):
                voxels = renumbered(voxels_of(volumes[key]), case["label_values"]).astype(np.uint8)
                volumes[key] = Nifti1Image(voxels, volumes[key].affine)
        except VolumeError as error:
            yield name, path, f"{key} {error}"
            continue
        voxels = voxels_of(volumes[key])
        if key == label:
            yield from ((name, path, rule) for rule in _rules_broken_by(voxels, label_values, foreground))
        elif rule := _problem_of_values(voxels, may_be_constant=key in stacks):
            yield name, path, f"{key} {rule}"
    yield from _problems_of_grid(case, volumes)


def _problem_of_values(voxels: NDArray[Any], *, may_be_constant: bool) -> str | None:
    lowest, highest = float(voxels.min()), float(voxels.max())  # NaN if there is one
    if not max(-lowest, highest) <= LARGEST or lowest != lowest:
        return "holds NaN or infinite voxels"
    return None if lowest < highest or may_be_constant else f"is empty, every voxel is {lowest:g}"


def _rules_broken_by(label: NDArray[Any], label_values: Sequence[Sequence[int]], foreground: bool) -> Iterator[str]:
    values = {value for index in range(label.shape[-1]) for value in _values(label[..., index])}
    values = {np.nan if value != value else value for value in values}  # one of them
    if not any(values <= set(allowed) for allowed in label_values):
        allowed_text = " or ".join(str(sorted(set(allowed))) for allowed in label_values)
        yield f"label values must be among {allowed_text}, found {sorted(values)[:10]}"
    elif foreground and not values - {0}:
        yield "label is empty, nothing is marked in it"


def _values(labels: NDArray[Any]) -> Iterable[float]:
    """The values of some voxels; small whole numbers are counted, which takes less than to sort them."""
    lowest, highest = labels.min(), labels.max()
    if lowest >= 0 and highest < 2**16:
        whole = labels.astype(np.int64)
        if labels.dtype.kind in "iu" or (whole == labels).all():
            return map(float, np.flatnonzero(np.bincount(whole.ravel(order="K"))))
    return map(float, np.unique(labels))


def _problems_of_grid(case: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[Problem]:
    (first, reference), *others = list(volumes.items()) or [("", None)]
    for key, volume in others:
        shape, wanted = volume.shape[:3], reference.shape[:3]
        if shape != wanted:
            rule = f"shape {volume.shape} differs from the {first}'s {reference.shape}"
        elif not same_grid(reference.affine, volume.affine, shape=shape):
            off = apart(reference.affine, volume.affine, shape=shape)
            rule = f"affine differs from the {first}'s by up to {off:.3g} mm"
        else:
            continue
        yield case_name(case), str(case[key]), rule
