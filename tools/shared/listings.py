"""The scans of data sets that describe themselves: of lists as of the Decathlon, and of nnU-Net's raw folders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from .descriptions import CHANNEL
from .lists import SPLITS, lists_of
from .scans import SUFFIXES, find_volume, is_volume, scans_in, stem, visible
from .validation import InputError

__all__ = ["FOLDERS", "Listing", "cases_in", "images_in", "listed_cases"]

PATIENT = ("patient", "subject")  # entries of a datalist's records
FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}  # of images, and of their labels

Case = dict[str, Any]


class Listing(NamedTuple):
    """Cases `{"case", "image"}`, and where there is one their `label`, by split; the patients of those that tell."""

    lists: dict[str, list[Case]]
    patients: dict[str, str]

    @property
    def cases(self) -> list[Case]:
        """All cases."""
        return list(chain.from_iterable(self.lists.values()))


def images_in(folder: Path, channels: Sequence[str], *, raw: bool) -> list[Case]:
    """Returns the scans in one folder, by the files of their first channel where channels have files of their own.

    Args:
        folder: such as `imagesTs`.
        channels: names of the channels.
        raw: whether they have files of their own, `<case>_0000` and so on.

    Raises:
        InputError: when a scan lacks a channel or has more than there are, or as `scans.scans_in`.
    """
    files = scans_in(folder)
    if not raw:
        return [{"case": stem(path), "image": str(path)} for path in files]
    held = _by_case(files)
    wanted = {f"{number:04d}" for number in range(len(channels))}
    rule = f"must have {len(channels)} channels ({', '.join(channels)}), has"
    if wrong := [case for case, found in held.items() if found.keys() != wanted]:
        raise InputError((case, str(folder), f"{rule} {', '.join(sorted(held[case]))}") for case in wrong)
    return [{"case": case, "image": str(found["0000"])} for case, found in held.items()]


def _by_case(files: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The files of every case, by the number of their channel."""
    held: dict[str, dict[str, Path]] = {}
    for path in files:
        if (match := CHANNEL.fullmatch(stem(path))) is None:
            raise InputError([(stem(path), str(path), "is not called <case>_0000, as nnU-Net's images are")])
        held.setdefault(match[1], {})[match[2]] = path
    return held


def cases_in(folder: Path, channels: Sequence[str], *, raw: bool, labelled: bool) -> Listing:
    """Returns the cases in `imagesTr` and `imagesTs`, for training and for tests.

    Args:
        folder: that holds these.
        channels: names of the channels.
        raw: see `images_in`.
        labelled: whether labels are needed: every training case must have one in `labelsTr`.

    Raises:
        InputError: as `images_in`, and when there are no labels, or one has no image.
    """
    lists: dict[str, list[Case]] = {split: [] for split in SPLITS}
    for split, (images, labels) in zip(("training", "test"), FOLDERS.items(), strict=True):
        if (folder / images).is_dir():
            lists[split] = images_in(folder / images, channels, raw=raw)
        if labelled and (split == "training" or (folder / labels).is_dir()):
            lists[split] = list(_with_labels(lists[split], folder / labels, every=split == "training"))
    return Listing(lists, {})


def _with_labels(cases: Sequence[Case], folder: Path, *, every: bool) -> Iterator[Case]:
    _check_labels(folder, {case["case"] for case in cases})
    for case in cases:
        label = find_volume(folder, case["case"])
        if label is None and every:
            label = folder / f"{case['case']}{SUFFIXES[0]}"  # which the checks miss by its name
        yield case | ({} if label is None else {"label": str(label)})


def _check_labels(folder: Path, names: Collection[str]) -> None:
    if not folder.is_dir():
        raise InputError([("", str(folder), "there are no labels to learn from or to compare with")])
    labels = [path for path in visible(folder) if is_volume(path)]
    if alone := [path for path in labels if stem(path) not in names]:
        raise InputError((stem(path), str(path), "the label has no image") for path in alone)


def listed_cases(content: Any, source: Path, *, labelled: bool) -> Listing:
    """Returns the cases that a list tells; those under `test` may have no label, and be mere paths of images.

    Args:
        content: of the file: records `{"image", "label"}` under `training` and, if wanted, `validation` and `test`;
            they may tell their `case`, and their `patient` or `subject`.
        source: the file, to whose folder paths are relative.
        labelled: whether labels are needed.

    Raises:
        InputError: when a list is missing or unknown, or a record lacks a path.
    """
    rule = "must hold a list of cases under 'training' and, if wanted, 'validation' and 'test'"
    records = lists_of(content, source, known=SPLITS, needed=["training"], rule=rule)
    found = Listing({split: [] for split in SPLITS}, {})
    for split in SPLITS:
        keys = ("image", "label") if labelled and split != "test" else ("image",)
        for entry in records[split]:
            record = {"image": entry} if isinstance(entry, str) and split == "test" else entry
            if not _has_texts(record, keys):
                raise InputError([("", str(source), f"every record in {split} must have an {' and a '.join(keys)}")])
            case = _case(record, source.parent)
            found.lists[split].append(case)
            found.patients.update((case["case"], patient) for patient in _patients(record))
    return found


def _patients(record: dict[str, Any]) -> list[str]:
    return [str(record[key]) for key in PATIENT if record.get(key) is not None]


def _case(record: dict[str, Any], folder: Path) -> Case:
    files = {key: str((folder / record[key]).absolute()) for key in ("image", "label") if record.get(key)}
    return {"case": record.get("case") or stem(Path(files["image"]))} | files


def _has_texts(record: Any, keys: Sequence[str]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(key), str) and record[key] for key in keys)
