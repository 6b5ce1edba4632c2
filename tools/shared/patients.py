"""Which scans are of one patient, as far as names tell: they train or validate together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from .validation import InputError

__all__ = ["by_patient", "check_patients", "draw", "expanded", "frame_of", "patient_of"]

# The part of a name that tells the patient; the rest tells visit, frame, view or version.
NAMES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(brats-.+-\d+)-\d+",  # BraTS from 2023 on: BraTS-GLI-00001-001
        r"(brats1\d_[a-z0-9]+_[a-z0-9]+)_\d+",  # BraTS to 2019: Brats17_TCIA_101_1
        r"(brats_.+_pat\d+)_\d+",  # BraTS 2015: brats_tcia_pat170_0002
        r"(sub-[a-z0-9]+)(?:_.+)?",  # BIDS: sub-01_ses-pre
        r"((?:ucsf-pdgm|upenn-gbm)-\d+)_.+",  # UPENN-GBM-00001_21
        r"(?:patient)?(\d{3})(?:_[sl]ax?)?(?:_\d+)?",  # ACDC, M&Ms-2; versions of it: patient001_0
        r"([a-z]\d[a-z]\d[a-z]\d)(?:_[sl]ax?)?(?:_\d+)?",  # M&Ms: A0S9V9
        r"(.+?)[_-](?:ses|session|visit|timepoint|tp|week|fu|followup)[_-]?\d+(?:[_.-].*)?",  # 01_visit2
    )
]
FRAME = re.compile(r"_(frame\d+|E[DS](_img)?)$", re.IGNORECASE)


def patient_of(name: str, known: Collection[str] = ()) -> str:
    """Returns the patient of a case, in small letters: the case's own name where it tells no more.

    Args:
        name: of the case.
        known: names of cases in small letters: `X_1` is of the patient of `X`, if there is one.
    """
    bare = FRAME.sub("", name)
    for pattern in NAMES:
        if match := pattern.fullmatch(bare):
            return match[1].casefold()
    base = re.sub(r"_\d+$", "", bare).casefold()
    return base if base in known else bare.casefold()


def frame_of(name: str) -> str:
    """Returns the frame of a heart's cycle that a case's name ends with, such as `ED` or `frame01`, or nothing."""
    match = FRAME.search(name)
    return match[1] if match else ""


def by_patient(names: Sequence[str], patients: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Returns the cases of every patient, by the name of the first of them.

    Args:
        names: of the cases.
        patients: patients by case, as far as they are known; names tell the others.
    """
    told = patients or {}
    first: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    known = {name.casefold() for name in names}
    for name in sorted(names):
        leader = first.setdefault(told.get(name) or patient_of(name, known), name)
        groups.setdefault(leader, []).append(name)
    return groups


def expanded(lists: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns lists of patients as sorted lists of their cases; `groups` is of `by_patient`."""
    return {part: sorted(name for leader in leaders for name in groups[leader]) for part, leaders in lists.items()}


def draw(
    kinds: Mapping[str, str], *, validation: float = 0.2, test: float = 0, seed: int = 123
) -> dict[str, list[str]]:
    """Draws the patients that validate and are tested, from every kind its share; `tools split` draws the same.

    Sorted patients are shuffled with the seed, and then put in an order any stretch of which holds the kinds in about
    their proportions.

    Args:
        kinds: grade of tumour, group of diseases or the like of every patient, two patients or more.
        validation: share of the patients between 0 and 1, of which there is one at least, or their number.
        test: share or number of the patients, 0 for none.
        seed: seed of the shuffle.

    Returns:
        Patients under `training`, `validation` and `test`, sorted.
    """
    sizes, seen = Counter(kinds.values()), Counter[str]()
    place = {}
    names = sorted(kinds)
    for name in (names[i] for i in np.random.default_rng(seed).permutation(len(names))):
        seen[kinds[name]] += 1
        place[name] = (seen[kinds[name]] - 0.5) / sizes[kinds[name]]
    order = sorted(place, key=lambda name: place[name])
    counts = [max(1, round(share * len(order))) if 0 < share < 1 else int(share) for share in (validation, test)]
    first, second = counts[0], sum(counts)
    parts = {"training": order[second:], "validation": order[:first], "test": order[first:second]}
    return {part: sorted(found) for part, found in parts.items()}


def check_patients(
    lists: Mapping[str, Sequence[str]], *, source: str | Path, patients: Mapping[str, str] | None = None
) -> None:
    """Checks that no patient has cases in two lists.

    Args:
        lists: names of cases by part of a split.
        source: the file that lists them.
        patients: see `by_patient`.

    Raises:
        InputError: naming both cases.
    """
    part_of = {name: part for part, names in lists.items() for name in names}
    problems = [
        (name, str(source), f"is in {part_of[name]}, another scan of the patient, {leader}, in {part_of[leader]}")
        for leader, names in by_patient(list(part_of), patients).items()
        for name in names
        if part_of[name] != part_of[leader]
    ]
    if problems:
        raise InputError(problems)
