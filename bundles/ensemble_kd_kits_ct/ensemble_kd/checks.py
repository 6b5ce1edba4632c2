"""Checks of scans, labels and soft labels before a run; `cases.check_cases` makes them while it reads the files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from nibabel.nifti1 import Nifti1Image

from .shared.stacks import check_order, rules_of_stack
from .shared.validation import Case, InputError, check_cases
from .soft_labels import Transform, grid_of, problem_of_soft_labels

__all__ = ["check_classes", "check_clip", "check_scans"]


def check_classes(label_groups: Sequence[Sequence[int]], **lists: Sequence[float]) -> None:
    """Checks what the classes are.

    Args:
        label_groups: for each class the values that label maps have for it; the first is background.
        lists: names from the config and values, of which each class must have one.

    Raises:
        InputError: when there are fewer than two classes, one has no value, a value is in two, or a list has another
            length.
    """
    count = len(label_groups)
    values = [value for group in label_groups for value in group]
    problems = [("", name, f"must have one entry for each of {count} classes, got {list(entries)}")
                for name, entries in lists.items() if len(entries) != count]  # fmt: skip
    if count < 2 or not all(label_groups) or len(set(values)) < len(values):
        rule = f"must be two groups or more of different label values, got {[list(group) for group in label_groups]}"
        problems.append(("", "label_groups", rule))
    if problems:
        raise InputError(problems)


def check_clip(clip_source: str | None, *, locate: bool) -> None:
    """Checks that there is a first stage if what it finds shall limit the labels.

    Raises:
        InputError: when `clip_source` is `stage1` without one.
    """
    if clip_source == "stage1" and not locate:
        raise InputError([("", "clip_source", "stage1 needs a first stage, and locate is false")])


def check_scans(
    splits: Sequence[Sequence[Case]],
    *,
    spatial: Transform,
    label_groups: Sequence[Sequence[int]] | None = None,
    labels: bool = True,
    label_order: Sequence[str] | None = None,
) -> None:
    """Checks every file that a run will read, see `cases.check_cases`.

    Args:
        splits: lists of cases `{"case", "image", "label", "soft"}`, the last two if any; none may be empty.
        spatial: what brings images and labels on the grid that networks see, and soft labels must have.
        label_groups: for each class the values that label maps have for it.
        labels: whether the cases have label maps.
        label_order: structures of the label values 1, 2 and 3 in short-axis stacks of the heart; `None`: other scans.

    Raises:
        InputError: as `check_cases`, and when soft labels are of another grid, have other channels than there are
            classes, or do not sum to one; of stacks of the heart, when `stacks.rules_of_stack` finds anything.
    """
    if label_order is not None:
        check_order(label_order)

    def further(case: Case, volumes: Mapping[str, Nifti1Image]) -> Iterator[tuple[str, str]]:
        if label_order is not None:
            yield from rules_of_stack(volumes, label="label" if labels else None, label_order=label_order)
        image = volumes["image"]
        if case.get("soft"):
            grid = grid_of(spatial, shape=image.shape, affine=torch.as_tensor(image.affine))
            classes = len(label_groups or [])
            if problem := problem_of_soft_labels(case["soft"], classes=classes, grid=grid):
                yield "soft", problem

    check_cases(
        splits,
        label="label" if labels else None,
        label_values=[[value for group in label_groups or [] for value in group]],
        foreground=labels,
        further=further,
        settings={
            "spatial": json.dumps(spatial, default=_content),
            "label_groups": label_groups,
            "label_order": label_order,
        },
    )


def _content(part: Any) -> Any:
    """What a transform is made of, without its random state."""
    return [type(part).__name__, str(getattr(part, "__qualname__", "")), dict(getattr(part, "__dict__", {}))]
