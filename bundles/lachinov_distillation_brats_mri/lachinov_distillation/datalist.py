"""Lists of cases: labelled ones, those that an ensemble has labelled, and those that nobody has."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .shared.data import find_scans
from .shared.files import write_text
from .shared.lists import lists_of, read_json
from .shared.patients import by_patient, check_patients
from .shared.scans import check_names
from .shared.validation import InputError

__all__ = ["read_datalist", "unlabelled_cases", "with_pseudo_labels", "write_datalist"]

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation", "test", "unlabelled")
PATHS = ("image", "label", "soft")

Case = dict[str, Any]
Problem = tuple[str, str, str]


def read_datalist(path: str | Path) -> dict[str, list[Case]]:
    """Reads a datalist, as `make_datalist` and `annotation.Datalist` write it.

    Args:
        path: JSON file with lists of cases `{"case", "image", "label", "label_source", ...}` under `training`,
            `validation`, `test` and `unlabelled`, of which some may be missing; paths in it are relative to its folder.

    Returns:
        The four lists, with absolute paths.

    Raises:
        InputError: when the file is missing, damaged or no datalist, or holds an unknown list; a case lacks its name or
            its image, or a label outside `unlabelled`; two cases have one name or file; or a patient (its entry
            `patient` or `subject`, else what its name tells) both trains and validates or is tested.
    """
    source = Path(path).absolute()
    if not source.is_file():
        raise InputError([("", str(source), "there is no such datalist: make or annotate it first")])
    rule = f"must hold lists of cases under {', '.join(SPLITS)}"
    found = read_json(source, kind="datalist")
    content = lists_of(found, source, known=SPLITS, rule=rule)
    if not any(name in found for name in SPLITS):
        raise InputError([("", str(source), rule)])
    lists = {name: [_record(source, record, name) for record in records] for name, records in content.items()}
    check_names((case for cases in lists.values() for case in cases), source=source)
    named = {name: [case["case"] for case in lists[name]] for name in SPLITS[:3]}
    check_patients(named, source=source, patients=_patients(case for cases in lists.values() for case in cases))
    return lists


def _patients(cases: Iterable[Case]) -> dict[str, str]:
    """Patients of the cases that tell them."""
    told = {case["case"]: case.get("patient") or case.get("subject") for case in cases}
    return {name: str(patient) for name, patient in told.items() if patient}


def _record(source: Path, record: Any, split: str) -> Case:
    needed = ["case", "image"] + (["label"] if split != "unlabelled" else [])
    if not isinstance(record, dict) or not all(record.get(key) for key in needed):
        name = record.get("case", "") if isinstance(record, dict) else ""
        raise InputError([(str(name), str(source), f"a case in {split} must have {', '.join(needed)}")])
    texts = [record["case"], *(record[key] for key in PATHS if record.get(key) is not None)]
    orders = [record[key] for key in ("stack", "label_order") if record.get(key) is not None]
    texts += [name for order in orders if isinstance(order, list) for name in order]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(order, list) for order in orders):
        rule = f"case and {', '.join(PATHS)} must be text, stack and label_order lists of text"
        raise InputError([(f"{record['case']!r:.60}", str(source), rule)])
    known = {key: value for key, value in record.items() if value is not None}  # which no batch may hold
    return known | {key: str(source.parent / known[key]) for key in PATHS if key in known}


def write_datalist(path: str | Path, lists: Mapping[str, Sequence[Case]]) -> None:
    """Writes a datalist; files below its folder are named relative to it. No reader ever sees a part of it."""
    target = Path(path).absolute()
    content = {
        split: [case | {key: _relative(case[key], target.parent) for key in PATHS if case.get(key)} for case in cases]
        for split, cases in lists.items()
    }
    write_text(target, json.dumps(content, indent=1) + "\n")


def _relative(file: str, folder: Path) -> str:
    path = Path(file).absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def unlabelled_cases(dataset_dir: str | Path, *, sequences: Sequence[str]) -> list[Case]:
    """Lists the scans to segment: those of a folder, see `data.find_scans`, or the `unlabelled` ones of a datalist.

    A line in the log tells how many a datalist has, and of other lists.

    Raises:
        InputError: as `data.find_scans` and `read_datalist`, and when the datalist has none.
    """
    if Path(dataset_dir).suffix.lower() != ".json":
        return find_scans(dataset_dir, sequences=sequences)
    lists = read_datalist(dataset_dir)
    if not (cases := lists["unlabelled"]):
        raise InputError([("", str(dataset_dir), "holds no unlabelled case")])
    others = ", ".join(f"{len(lists[name])} of {name}" for name in SPLITS[:3])
    logger.info("%s: the %d unlabelled scans are taken, not those with labels: %s", dataset_dir, len(cases), others)
    return cases


def with_pseudo_labels(
    labelled: Mapping[str, list[Case]],
    pseudo_labels: str | Path | bool | None,
    *,
    exclude: Collection[str] = (),
    soft: bool = False,
) -> dict[str, list[Case]]:
    """Adds the cases that an ensemble has labelled to the training cases.

    Ground truth wins: the pseudo-label of a case with a label in `training` is not used, and a line in the log says so.

    Args:
        labelled: lists of labelled cases by split.
        pseudo_labels: datalist of the annotated cases; `False` for none, which a command line can say, unlike `None`.
        exclude: names of cases that must not be used at all, for example patients of a later test.
        soft: whether to learn from the ensemble's region probabilities instead of its label maps.

    Returns:
        `labelled` without the excluded cases, with the annotated cases in `training`; each has a `label_source`.

    Raises:
        InputError: when an annotated case is one of validation or test too, or of a patient there (it would leak), an
            excluded case is nowhere, or `soft` is wanted and a case has no region probabilities.
    """
    known = {split: list(labelled.get(split, [])) for split in SPLITS[:3]}
    annotated = read_datalist(str(pseudo_labels))["training"] if pseudo_labels else []
    names = {case["case"] for cases in [*known.values(), annotated] for case in cases}
    problems: list[Problem] = [(name, "exclude", "there is no such case") for name in sorted(set(exclude) - names)]
    known = {split: [case for case in cases if case["case"] not in exclude] for split, cases in known.items()}
    annotated = [case for case in annotated if case["case"] not in exclude]
    split_of = {case["case"]: split for split, cases in known.items() for case in cases}
    held_out = _held_out(known, annotated)
    for case in annotated:
        if case["case"] in held_out:
            rule = f"{held_out[case['case']]}, training on it would leak: list it in `exclude`"
            problems.append((case["case"], str(pseudo_labels), rule))
        elif soft and not case.get("soft") and case["case"] not in split_of:
            problems.append(
                (case["case"], str(pseudo_labels), "has no region probabilities: annotate with `soft: true`")
            )
    if problems:
        raise InputError(problems)
    if beaten := sorted(case["case"] for case in annotated if case["case"] in split_of):
        logger.warning("%d pseudo-labels give way to labels of the same cases: %s", len(beaten), ", ".join(beaten))
    own = [{"label_source": "manual"} | case for case in known["training"]]
    added = [_without(case, () if soft else ("soft",)) for case in annotated if case["case"] not in split_of]
    return {**known, "training": own + added}


def _held_out(known: Mapping[str, Sequence[Case]], annotated: Sequence[Case]) -> dict[str, str]:
    """Why annotated cases must not train, by name: they, or another scan of their patient, validate or are tested."""
    split_of = {case["case"]: split for split in ("validation", "test") for case in known[split]}
    every = [*annotated, *(case for cases in known.values() for case in cases)]
    found: dict[str, str] = {}
    for names in by_patient(list({case["case"] for case in every}), _patients(every)).values():
        for other in (name for name in names if name in split_of):
            found |= dict.fromkeys(names, f"is of the patient of {other}, a case of {split_of[other]}")
    return found | {name: f"is a case of {split} too" for name, split in split_of.items()}


def _without(case: Case, keys: Collection[str]) -> Case:
    return {key: value for key, value in case.items() if key not in keys}
