"""Which patients train, validate and test in the published settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import BUNDLE_ROOT
from .shared.validation import InputError

__all__ = ["published_split"]

logger = logging.getLogger(__name__)

PUBLISHED = Path(BUNDLE_ROOT, "configs", "splits_published.json")
UPPER_BOUND = "_upperbound"

Split = dict[str, list[str]]


def published_split(setting: str | float, cval: int = 0, *, strict: bool = True) -> Split:
    """Patients of a setting of the authors' implementation, named `001` to `100` as in ACDC.

    Args:
        setting: `standard`; a number of training patients or a fraction of the pool of 40; `one_shot`, `three_shot`,
            and with the 25 unlabelled patients `one_shot_upperbound`, `three_shot_upperbound`, `25_shot_upperbound`.
        cval: which of the five draws, 0 to 4; of no effect in `standard`.
        strict: leaves patients that train out of the validation; the published lists overlap in some settings, for
            example `10` with `cval` 1 and 4.

    Raises:
        InputError: when the setting or `cval` is unknown, or asks for more patients than the pool holds.
    """
    published: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    setting = str(setting)
    if cval not in range(len(published["validation"])):
        raise InputError([("", "cval", f"must be one of 0 to {len(published['validation']) - 1}, got {cval}")])
    if setting == "standard":
        return {**published["standard"], "test": published["test"]}
    training, validation = _published_lists(published, setting, cval)
    shared = [patient for patient in validation if patient in training]
    if shared and strict:
        validation = [patient for patient in validation if patient not in shared]
    elif shared:
        logger.warning("Setting %s, cval %d: %s train and validate, as published", setting, cval, ", ".join(shared))
    return {"training": training, "validation": validation, "test": published["test"]}


def _published_lists(published: Mapping[str, Any], setting: str, cval: int) -> tuple[list[str], list[str]]:
    """Patients of training and of validation, which may overlap."""
    kind = setting.removesuffix(UPPER_BOUND)
    validation = published["validation"][cval]
    if kind == "one_shot":
        training = [published[kind][cval]]
        others = [patient for patient in published[kind] if patient not in training]
        validation = list(dict.fromkeys([*validation, *others]))
    elif kind == "three_shot":
        training = published[kind][cval]
    else:
        wanted = "25" if setting == f"25_shot{UPPER_BOUND}" else setting
        training = _drawn_from(published["pool"], wanted, cval)
    if setting.endswith(UPPER_BOUND):
        training = [*training, *published["unlabelled"]]
    return training, validation


def _drawn_from(pool: Sequence[str], wanted: str, seed: int) -> list[str]:
    """Draws `wanted` patients (a number, or a fraction below 1) as scikit-learn's `train_test_split` does."""
    try:
        number = float(wanted)
    except ValueError:
        names = f"standard, one_shot, three_shot, these two and 25_shot with {UPPER_BOUND}, or a number of patients"
        raise InputError([("", "setting", f"must be one of {names}; got {wanted}")]) from None
    count = int(number * len(pool)) if 0 < number < 1 else number
    if count not in range(1, len(pool) + 1):
        raise InputError([("", "setting", f"must take 1 to {len(pool)} patients of the published pool, got {wanted}")])
    if count == len(pool):
        return list(pool)
    drawn = np.random.RandomState(seed).permutation(len(pool))[len(pool) - int(count) :]
    return [pool[index] for index in drawn]
