"""The datalist of several data sets of brain tumours; no scan is in it twice.

In the folder of the bundle:
`python -m lachinov_distillation.make_datalist list.json --labelled BRATS --decathlon Task01_BrainTumour`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from .datalist import write_datalist
from .decathlon import DECATHLON_LABELS, channels
from .duplicates import GRID, SAME, read_fingerprint, same_scans, similarities
from .shared.data import find_scans, read_split, sequence_files
from .shared.lists import read_json, read_text
from .shared.patients import by_patient
from .shared.scans import scans_in, stem
from .shared.validation import InputError

__all__ = ["main", "make_datalist"]

logger = logging.getLogger(__name__)

LISTS = ("training", "validation", "unlabelled")
BRATS_LABELS = ["NCR", "ED", "ET", "ET"]  # ET is 4 until 2021, 3 from 2023 on

Problem = tuple[str, str, str]


class Scan(NamedTuple):
    """A case, the list that it belongs to, and its entry there."""

    part: str
    case: str
    entry: dict[str, Any]

    def files(self, sequences: Sequence[str]) -> list[tuple[str, Path]]:
        """Its files and what each should hold: sequences, or `image` for a stack, and `label`."""
        image = Path(self.entry["image"])
        found = None if self.entry["stack"] else sequence_files(image, sequences)
        label = {"label": Path(self.entry["label"])} if "label" in self.entry else {}
        return list({**(found or {"image": image}), **label}.items())


def make_datalist(
    output: str,
    *,
    labelled: str,
    decathlon: str | None = None,
    unlabelled: str | None = None,
    exclude: str | None = None,
    sequences: str | Sequence[str] = ("t1", "t1ce", "t2", "flair"),
    validation: float = 0.2,
    seed: int = 123,
    duplicates: str = "refuse",
) -> Path:
    """Lists the scans to learn from in the file `output`: training, validation and unlabelled.

    The BraTS patients of `labelled` are divided into training and validation, the same share of every grade. Cases of
    `decathlon` all go to training. Scans are compared by content, because the Decathlon holds patients of BraTS under
    other names: a copy of a validation case in training would invalidate every score, and so would another scan of its
    patient, which its name tells.

    Args:
        output: JSON file to write: {"training": [...], "validation": [...], "unlabelled": [...]}, sorted by case. Paths
            are relative to its folder when below it, else absolute.
        labelled: folder of BraTS cases, with or without folders HGG and LGG; of 2017 or later, because label 3 was
            another class before.
        decathlon: folder Task01_BrainTumour with imagesTr and labelsTr.
        unlabelled: folder of BraTS cases or of 4D volumes like imagesTs; labels in it are not used.
        exclude: file of cases that no list shall hold, for example a hold-out: one per line, # starts a comment, or a
            JSON list. Later copies of them count as duplicates too (first validation, then training, Decathlon,
            unlabelled), and further scans of their patients. The split of the other cases stays as it is.
        sequences: that every case must have, for example t1,t1ce,t2,flair; a BraTS case is known by the first.
        validation: share of the BraTS cases for validation, between 0 and 1.
        seed: seed of the shuffle.
        duplicates: "refuse" ends with an error that names the pairs, "drop" leaves out the later scan of each.

    Returns:
        The file written.

    Raises:
        ValueError: an argument is none of those allowed, files are missing or unreadable, channels are in another
            order, an excluded case does not exist, a name or a scan occurs twice, or a list would be empty.
    """
    _check_arguments(duplicates, validation)
    wanted = sequences.split(",") if isinstance(sequences, str) else list(sequences)
    # In the order of precedence: of two that are the same the first stays.
    scans = _labelled(read_split(labelled, sequences=wanted, validation=validation, seed=seed))
    scans += [] if decathlon is None else _decathlon(Path(decathlon).absolute(), wanted)
    scans += [] if unlabelled is None else _unlabelled(Path(unlabelled).absolute(), wanted)
    excluded = set() if exclude is None else _excluded(Path(exclude), {scan.case for scan in scans})
    _check_files(scans, excluded, sequences=wanted)
    dropped = _dropped(
        scans, excluded, sequence="flair" if "flair" in wanted else wanted[0], refuse=duplicates != "drop"
    )
    kept = [scan for index, scan in enumerate(scans) if index not in dropped and scan.case not in excluded]
    path = Path(output).absolute()
    _write(path, kept)
    _log(path, kept)
    return path


def _log(path: Path, scans: Iterable[Scan]) -> None:
    numbers = Counter(scan.part for scan in scans)
    logger.info("%s: %s cases", path, ", ".join(f"{numbers[part]} {part}" for part in LISTS))


def _labelled(split: Mapping[str, Sequence[dict[str, Any]]]) -> list[Scan]:
    entry = {"label_source": "manual", "label_order": BRATS_LABELS, "stack": None}
    return [Scan(part, case["case"], case | entry) for part in ("validation", "training") for case in split[part]]


def _check_arguments(duplicates: str, validation: float) -> None:
    if duplicates not in ("refuse", "drop") or not 0 < validation < 1:
        rule = "duplicates must be refuse or drop, validation between 0 and 1"
        raise ValueError(f"{rule}, got {duplicates} and {validation}")


def _check_files(scans: Iterable[Scan], excluded: set[str], *, sequences: Sequence[str]) -> None:
    left = [scan for scan in scans if scan.case not in excluded]
    files = ((scan.case, key, path) for scan in left for key, path in scan.files(sequences))
    if problems := [(case, str(path), f"{key} is missing") for case, key, path in files if not path.is_file()]:
        raise InputError(problems)


def _decathlon(root: Path, sequences: Sequence[str]) -> list[Scan]:
    """The cases of imagesTr with their labels."""
    images, labels = (
        {path.name: path for path in (scans_in(root / part, suffixes=[".nii.gz"]) if (root / part).is_dir() else [])}
        for part in ("imagesTr", "labelsTr")
    )
    if not images:
        raise InputError([("", str(root / "imagesTr"), "holds no volume *.nii.gz")])
    if problems := [(name, str(labels[name]), "has no image in imagesTr") for name in labels if name not in images]:
        raise InputError(problems)
    entry = {"label_source": "manual", "label_order": DECATHLON_LABELS, "stack": channels(root, sequences)}
    return [
        Scan("training", case, {"case": case, "image": str(path), "label": str(root / "labelsTr" / name), **entry})
        for name, path in images.items()
        for case in [stem(path)]
    ]


def _unlabelled(root: Path, sequences: Sequence[str]) -> list[Scan]:
    stack = channels(root, sequences) if root.name in ("imagesTr", "imagesTs") else None
    found = find_scans(root, sequences=sequences)
    stacked = [sequence_files(case["image"], sequences) is None for case in found]
    stack = stack or (channels(root, sequences) if any(stacked) else None)
    return [
        Scan("unlabelled", case["case"], {**case, "stack": stack if alone else None})
        for case, alone in zip(found, stacked, strict=True)
    ]


def _excluded(path: Path, cases: set[str]) -> set[str]:
    text = read_text(path, kind="file of excluded cases")
    if text.lstrip().startswith("["):
        names = [str(name) for name in read_json(path, kind="file of excluded cases")]
    else:
        names = [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]
    if unknown := [name for name in names if name not in cases]:
        raise InputError([(name, str(path), "is excluded but occurs in no data folder") for name in unknown])
    return set(names)


def _dropped(scans: Sequence[Scan], excluded: set[str], *, sequence: str, refuse: bool) -> set[int]:
    """Indices of the scans that are copies of earlier ones; names every pair that excluding has not resolved."""
    similarity = similarities(_fingerprints(scans, excluded, sequence))
    groups = same_scans(similarity)
    later = {index for group in groups for index in group[1:]}
    open_ones = {index for index in later if scans[index].case not in excluded}
    visits = _visits(scans, excluded)
    later |= visits.keys()
    problems = [(scans[index].case, scans[index].entry["image"], rule) for index, rule in visits.items()]
    for first, second in chain.from_iterable(combinations(group, 2) for group in groups):
        if similarity[first, second] >= SAME and not open_ones.isdisjoint((first, second)):
            problems.append(_duplicate(scans[first], scans[second], float(similarity[first, second])))
    _settle(problems, scans, excluded, later=later, refuse=refuse)
    return later


def _duplicate(first: Scan, second: Scan, similarity: float) -> Problem:
    rule = f"shows the same scan as case {first.case}: {first.entry['image']} (similarity {similarity:.3f})"
    return second.case, second.entry["image"], rule


def _settle(
    problems: Sequence[Problem], scans: Sequence[Scan], excluded: set[str], *, later: set[int], refuse: bool
) -> None:
    """Raises problems or logs what is left out for them; of those that stay no two may have one name."""
    if refuse and problems:
        advice = "--duplicates drop leaves out the scan named first in each line; or name it in a file for --exclude."
        raise ValueError(f"{InputError([*problems, *_names_twice(scans, excluded)])}\n{advice}")
    for case, file, rule in problems:
        logger.info("case %s: %s: %s", case, file, rule)
    if twice := list(_names_twice([scan for index, scan in enumerate(scans) if index not in later], excluded)):
        raise InputError(twice)


def _visits(scans: Sequence[Scan], excluded: set[str]) -> dict[int, str]:
    """Indices of scans to learn from whose patient validates or is excluded, as names tell; why each may not stay."""
    part_of = {scan.case: scan.part for scan in reversed(scans)}
    held_out = excluded | {case for case, part in part_of.items() if part == "validation"}
    found: dict[str, str] = {}
    for cases in by_patient(list(part_of)).values():
        for held in filter(held_out.__contains__, cases):
            found |= dict.fromkeys(cases, f"is of the patient of case {held}, who validates or is excluded")
    return {
        index: found[scan.case]
        for index, scan in enumerate(scans)
        if scan.part != "validation" and scan.case in found and scan.case not in excluded
    }


def _names_twice(scans: Sequence[Scan], excluded: set[str]) -> Iterator[Problem]:
    seen: dict[str, Scan] = {}
    for scan in scans:
        if scan.case not in excluded and seen.setdefault(scan.case, scan) is not scan:
            yield scan.case, scan.entry["image"], f"has the name of another case: {seen[scan.case].entry['image']}"


def _fingerprints(scans: Sequence[Scan], excluded: set[str], sequence: str) -> torch.Tensor:
    """Fingerprints of all scans `(N, GRID, GRID, GRID)`; zeros for an excluded scan that cannot be read."""

    def read(scan: Scan) -> torch.Tensor | Problem:
        stack = scan.entry["stack"]
        (_, path), *_ = scan.files([sequence])
        try:
            return read_fingerprint(path, stack.index(sequence) if stack else None)
        except Exception as error:
            return scan.case, str(path), f"cannot be compared with the other scans ({error})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(read, scans), "Comparing scans", len(scans), unit="case"))
    problems = [each for each in found if not isinstance(each, torch.Tensor)]
    if serious := [problem for problem in problems if problem[0] not in excluded]:
        raise InputError(serious)
    for case, file, rule in problems:
        logger.warning("excluded case %s: %s: %s", case, file, rule)
    return torch.stack([each if isinstance(each, torch.Tensor) else torch.zeros((GRID,) * 3) for each in found])


def _write(path: Path, scans: Sequence[Scan]) -> None:
    lists: dict[str, list[dict[str, Any]]] = {part: [] for part in LISTS}
    for scan in sorted(scans, key=lambda scan: scan.case):
        lists[scan.part].append(scan.entry)
    if empty := [part for part in ("training", "validation") if not lists[part]]:
        raise InputError([("", str(path), f"no case would be left for {' and '.join(empty)}")])
    write_datalist(path, lists)


def main(words: Sequence[str] | None = None) -> None:
    """Runs `make_datalist` with the options of the command line, those in `words` or the process's.

    Raises:
        SystemExit: with the reason, where an option or the data are not as they should be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lachinov_distillation.make_datalist",
        description=make_datalist.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("output")
    parser.add_argument("--labelled", required=True)
    for name in ("decathlon", "unlabelled", "exclude", "sequences", "duplicates"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--validation", type=float)
    parser.add_argument("--seed", type=int)
    given = vars(parser.parse_args(words))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make_datalist(**given)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
