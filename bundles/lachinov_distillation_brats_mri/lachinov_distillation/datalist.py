"""Lists of cases: labelled ones, those that an ensemble has labelled, and those that nobody has."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .shared.data import find_scans
from .shared.datasets import is_list
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
    every = [case for cases in lists.values() for case in cases]
    check_names(every, source=source)
    named = {name: [case["case"] for case in lists[name]] for name in SPLITS[:3]}
    check_patients(named, source=source, patients=_patients(every))
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
    if not _has_types(record):
        rule = f"case and {', '.join(PATHS)} must be text, stack and label_order lists of text"
        raise InputError([(f"{record['case']!r:.60}", str(source), rule)])
    return _with_files(record, source.parent)


def _has_types(record: Case) -> bool:
    texts = [record["case"], *_given(record, PATHS)]
    orders = _given(record, ("stack", "label_order"))
    return _are_texts(texts) and all(isinstance(order, list) and _are_texts(order) for order in orders)


def _given(record: Case, keys: Iterable[str]) -> list[Any]:
    return [record[key] for key in keys if record.get(key) is not None]


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _with_files(record: Case, folder: Path) -> Case:
    """The record with absolute paths, without entries that are `None`, which no batch may hold."""
    known = {key: value for key, value in record.items() if value is not None}
    return known | {key: str(folder / known[key]) for key in PATHS if key in known}


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
    if not is_list(Path(dataset_dir).absolute()) or _describes(dataset_dir):
        return find_scans(dataset_dir, sequences=sequences)
    lists = read_datalist(dataset_dir)
    if not (cases := lists["unlabelled"]):
        raise InputError([("", str(dataset_dir), "holds no unlabelled case")])
    others = ", ".join(f"{len(lists[name])} of {name}" for name in SPLITS[:3])
    logger.info("%s: the %d unlabelled scans are taken, not those with labels: %s", dataset_dir, len(cases), others)
    return cases


def _describes(path: str | Path) -> bool:
    """Whether a JSON file is of the Decathlon or of nnU-Net, whose channels it names."""
    content = read_json(path, kind="datalist") if Path(path).is_file() else None
    return isinstance(content, dict) and not {"modality", "channel_names"}.isdisjoint(content)


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
    names = _names(*known.values(), annotated)
    problems: list[Problem] = [(name, "exclude", "there is no such case") for name in sorted(set(exclude) - names)]
    known = {split: _left(cases, exclude) for split, cases in known.items()}
    annotated = _left(annotated, exclude)
    own = [{"label_source": "manual"} | case for case in known["training"]]
    added = _left(annotated, _names(own))
    held_out = _held_out(known, annotated)
    needing = _names(added) if soft else ()
    problems += _rules_broken(annotated, str(pseudo_labels), held_out=held_out, soft_of=needing)
    if problems:
        raise InputError(problems)
    if beaten := sorted(_names(annotated) & _names(own)):
        logger.warning("%d pseudo-labels give way to labels of the same cases: %s", len(beaten), ", ".join(beaten))
    return {**known, "training": own + (added if soft else _without(added, "soft"))}


def _names(*lists: Iterable[Case]) -> set[str]:
    return {case["case"] for cases in lists for case in cases}


def _left(cases: Iterable[Case], exclude: Collection[str]) -> list[Case]:
    return [case for case in cases if case["case"] not in exclude]


def _rules_broken(
    annotated: Iterable[Case], source: str, *, held_out: Mapping[str, str], soft_of: Collection[str]
) -> Iterator[Problem]:
    """Yields why annotated cases must not train; those of `soft_of` need region probabilities."""
    for case in annotated:
        if case["case"] in held_out:
            yield case["case"], source, f"{held_out[case['case']]}, training on it would leak: list it in `exclude`"
        elif case["case"] in soft_of and not case.get("soft"):
            yield case["case"], source, "has no region probabilities: annotate with `soft: true`"


def _held_out(known: Mapping[str, Sequence[Case]], annotated: Sequence[Case]) -> dict[str, str]:
    """Why annotated cases must not train, by name: they, or another scan of their patient, validate or are tested."""
    split_of = {case["case"]: split for split in ("validation", "test") for case in known[split]}
    every = [*annotated, *(case for cases in known.values() for case in cases)]
    found: dict[str, str] = {}
    for names in by_patient(list({case["case"] for case in every}), _patients(every)).values():
        for other in filter(split_of.__contains__, names):
            found |= dict.fromkeys(names, f"is of the patient of {other}, a case of {split_of[other]}")
    return found | {name: f"is a case of {split} too" for name, split in split_of.items()}


def _without(cases: Iterable[Case], key: str) -> list[Case]:
    return [{name: value for name, value in case.items() if name != key} for case in cases]
