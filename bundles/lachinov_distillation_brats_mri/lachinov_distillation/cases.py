# Identical in every bundle; python -m tools check compares the copies.
"""Checks of the user's scans before any long work starts: every problem named by case, file and rule, all at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from tqdm import tqdm

__all__ = ["InputError", "check_cases", "check_sizes", "report_plainly"]

Case = Mapping[str, Any]
Problem = tuple[str, str, str]
Further = Callable[[Case, Mapping[str, MetaTensor]], Iterable[tuple[str, str]]]


class InputError(ValueError):
    """What the user gave breaks rules; the message has one line per problem: case, file, rule."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        lines = [f"{f'case {case}: ' if case else ''}{file}: {rule}" for case, file, rule in problems]
        super().__init__("\n  ".join([f"{len(lines)} problem(s) in the input, nothing was started:", *lines]))


def report_plainly() -> None:
    """Lets an uncaught `InputError` end the program with its message alone, not with MONAI's chain of wrappers.

    Of several processes under `torchrun` that end with the same message, one prints it.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            sys.__excepthook__(kind, error, trace)
        elif _is_first_to_say(str(cause)):
            sys.stderr.write(f"\n{cause}\n")

    sys.excepthook = hook


def _is_first_to_say(message: str) -> bool:
    """Asks the store that `torchrun` keeps for its processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=10)
        )
        return bool(store.add(f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {message}", 1) == 1)
    except RuntimeError:  # gone, as the machine that kept it
        return True


def case_name(case: Case) -> str:
    """Returns the name of a case: its entry `case`, else the name of its image file."""
    return str(case.get("case") or Path(case["image"]).name)


def check_cases(
    splits: Sequence[Sequence[Case]],
    *,
    images: Sequence[str] = ("image",),
    stacks: Collection[str] = (),
    label: str | None = "label",
    label_values: Sequence[Sequence[int]] = ((0, 1),),
    foreground: bool = True,
    further: Further | None = None,
) -> None:
    """Reads every file of every case once and checks it; cheap rules come first.

    Args:
        splits: lists of cases, for example training and validation; no file may occur in two of them.
        images: keys of the images, each a path to a 3D volume; those that a case lacks are not asked for.
        stacks: those of them that are 4D, with channels along the last axis.
        label: key of the label map, `None` when there is none.
        label_values: the sets of values of which a label map may hold a subset of one.
        foreground: whether a label map must hold anything but 0.
        further: from a case that keeps the rules above, and its volumes by key, to the key and rule of others broken.

    Raises:
        InputError: when a split is empty, a case is in two splits, a file is missing or unreadable, a volume is not 3D
            or not finite, an image and its label differ in shape or affine, a label map holds other values or none, or
            `further` finds anything.
    """
    problems = list(_problems_of_splits(splits, images))
    if problems:
        raise InputError(problems)
    rules: dict[str, Any] = {"label_values": [set(values) for values in label_values], "foreground": foreground}
    keys = [*images, *([] if label is None else [label])]

    def problems_of(case: Case) -> list[Problem]:
        present = [key for key in keys if key in case]
        volumes: dict[str, MetaTensor] = {}
        found = list(_problems_of_case(case, present, label, stacks=stacks, volumes=volumes, **rules))
        if further is not None and not found:
            found = [(case_name(case), str(case[key]), rule) for key, rule in further(case, volumes)]
        return found

    # Absolute before the threads start: the first import of itk changes the working directory for a moment.
    cases = [
        {**case, **{key: str(Path(case[key]).absolute()) for key in keys if key in case}}
        for split in splits
        for case in split
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(problems_of, cases)
        problems = [problem for case in tqdm(found, "Checking scans", len(cases), unit="case") for problem in case]
    if problems:
        raise InputError(problems)


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


def _problems_of_splits(splits: Sequence[Sequence[Case]], images: Sequence[str]) -> Iterator[Problem]:
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
    label: str | None,
    *,
    stacks: Collection[str],
    volumes: dict[str, MetaTensor],
    label_values: list[set[int]],
    foreground: bool,
) -> Iterator[Problem]:
    """Reads the files of a case into `volumes` and yields what is wrong with them."""
    for key in keys:
        name, path = case_name(case), Path(case[key])
        if not path.is_file():
            yield name, str(path), f"{key} is missing"
            continue
        try:
            volumes[key] = LoadImage(image_only=True)(path)
        except Exception as error:
            yield name, str(path), f"{key} cannot be read ({_reason(error)})"
            continue
        volume, dimensions = volumes[key], 4 if key in stacks else 3
        if volume.ndim != dimensions:
            yield name, str(path), f"{key} must be a {dimensions}D volume, its shape is {tuple(volume.shape)}"
        elif key != label and not torch.isfinite(volume).all():
            yield name, str(path), f"{key} holds NaN or infinite voxels"
        elif key == label:
            yield from ((name, str(path), rule) for rule in _rules_broken_by(volume, label_values, foreground))
    yield from _problems_of_grid(case, volumes)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__


def _rules_broken_by(label: MetaTensor, label_values: list[set[int]], foreground: bool) -> Iterator[str]:
    values = set(torch.unique(label.as_tensor()).tolist())
    if not any(values <= allowed for allowed in label_values):
        allowed_text = " or ".join(str(sorted(allowed)) for allowed in label_values)
        yield f"label values must be among {allowed_text}, found {sorted(values)[:10]}"
    elif foreground and not values - {0}:
        yield "label is empty, nothing is marked in it"


def _problems_of_grid(case: Case, volumes: Mapping[str, MetaTensor]) -> Iterator[Problem]:
    (first, reference), *others = list(volumes.items()) or [("", None)]
    for key, volume in others:
        if volume.shape[:3] != reference.shape[:3]:
            rule = f"shape {tuple(volume.shape)} differs from the {first}'s {tuple(reference.shape)}"
        elif not torch.allclose(volume.affine, reference.affine, atol=1e-2):
            rule = f"affine differs from the {first}'s by up to {(volume.affine - reference.affine).abs().max():.3g} mm"
        else:
            continue
        yield case_name(case), str(case[key]), rule
