"""Data sets that describe themselves: the Medical Segmentation Decathlon, JSON datalists, raw folders of nnU-Net."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .descriptions import CHANNEL, DESCRIPTION, channel_names, label_values
from .listings import FOLDERS, Listing, cases_in, images_in, listed_cases
from .lists import SPLITS, read_json, read_split_file
from .patients import by_patient, check_patients, draw, expanded
from .scans import check_names, folders_in, is_volume, stem, visible
from .validation import InputError

__all__ = ["Described", "described", "is_list", "root_of_list"]

logger = logging.getLogger(__name__)

NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})

Case = dict[str, Any]


class Described(NamedTuple):
    """What a data set lists.

    A case whose label map has other values than the bundle has `label_values`, see `descriptions.label_values`.
    """

    source: Path
    listing: Listing

    def split(self, split_file: str | Path | None, *, validation: float, seed: int) -> dict[str, list[Case]]:
        """Returns the labelled cases by split: of the file, else as listed, else with patients drawn for validation.

        Test scans without a label are left out.

        Args:
            split_file: see `lists.read_split_file`; it lists cases.
            validation: share of the patients, see `patients.draw`.
            seed: of that draw.

        Raises:
            InputError: when the file is damaged or names a case that is not there, a patient is divided, or there are
                fewer than two patients to draw from.
        """
        found, names = self._labelled()
        if split_file:
            names = read_split_file(split_file)
        elif not names["validation"]:
            names |= self._drawn(names["training"], validation=validation, seed=seed)
        self._check_listed(chain.from_iterable(names.values()), found)
        check_patients(names, source=split_file or self.source, patients=self.listing.patients)
        return {split: [found[name] for name in names[split]] for split in SPLITS}

    def _labelled(self) -> tuple[dict[str, Case], dict[str, list[str]]]:
        """The cases by name, and their names by split."""
        found = {case["case"]: case for case in self.listing.cases if "label" in case}
        names = {part: [case["case"] for case in cases] for part, cases in self.listing.lists.items()}
        return found, names | {"test": [name for name in names["test"] if name in found]}

    def _check_listed(self, names: Iterable[str], found: Mapping[str, Case]) -> None:
        rule = "the split file names it, there is no such case"
        if unknown := [name for name in names if name not in found]:
            raise InputError((name, str(self.source), rule) for name in unknown)

    def _drawn(self, names: list[str], *, validation: float, seed: int) -> dict[str, list[str]]:
        groups = by_patient(names, self.listing.patients)
        if len(groups) < 2:
            rule = f"needs cases of two patients or more to train, holds {len(groups)}"
            raise InputError([("", str(self.source), rule)])
        drawn = expanded(draw(dict.fromkeys(groups, ""), validation=validation, seed=seed), groups)
        return {split: drawn[split] for split in SPLITS[:2]}

    def scans(self) -> list[Case]:
        """Returns every case of every list as `{"case", "image"}`; a line in the log counts them.

        Raises:
            InputError: when there is none.
        """
        lists = {split: cases for split, cases in self.listing.lists.items() if cases}
        if not lists:
            raise InputError([("", str(self.source), "holds no scan")])
        counts = ", ".join(f"{len(cases)} of {split}" for split, cases in lists.items())
        logger.info("%s: every list is taken, %s", self.source, counts)
        return [{"case": case["case"], "image": case["image"]} for case in self.listing.cases]


def is_list(path: Path) -> bool:
    """Returns whether a path is that of a JSON file, there or not."""
    return path.suffix.lower() == ".json" and not os.path.isdir(path)  # noqa: PTH112  # which raises when a folder above cannot be read


def root_of_list(path: Path) -> Path:
    """Returns the folder that holds all scans of a list, whatever it calls the lists in it.

    Raises:
        InputError: when it cannot be read.
    """
    content = read_json(path, kind="datalist")
    if _is_raw(content, path):
        return path.parent
    folders = [(path.parent / image).absolute().parent for image in _images(content) if isinstance(image, str)]
    return Path(os.path.commonpath(folders or [path.parent]))


def _images(content: Any) -> Iterator[Any]:
    """Yields what the records of all lists say of their image."""
    for listed in content.values() if isinstance(content, dict) else ():
        for record in listed if isinstance(listed, list) else ():
            yield record.get("image") if isinstance(record, dict) else record


def described(
    dataset_dir: str | Path,
    *,
    is_case: Callable[[Path], bool],
    sequences: Sequence[str] | None = None,
    names: Mapping[str, Sequence[str]] = NOTHING,
    labelled: bool = True,
    classes: Mapping[str, int] | None = None,
    synonyms: Mapping[str, Sequence[str]] = NOTHING,
) -> Described | None:
    """Reads a data set that describes itself; a line in the log says as what it was read.

    These are a JSON datalist; a folder with a `dataset.json` that lists scans under `training`, as the Decathlon has
    it; and one with `<case>_0000` and further channels in `imagesTr`, as nnU-Net has it. `imagesTr` and `imagesTs` may
    be given themselves.

    Args:
        dataset_dir: the list or the folder.
        is_case: whether a folder is a case in the bundle's own layout.
        sequences: that are needed of every scan; `None`: scans have one channel.
        names: what else channels may be called, by sequence.
        labelled: whether labels are needed.
        classes: values of the bundle's label maps by class; `None`: they are as they are.
        synonyms: what else classes may be called, see `descriptions.label_values`.

    Returns:
        What it lists; `None` for anything else, which may be in the bundle's own layout.

    Raises:
        InputError: when a file is damaged, the data set can be read in two ways (both are named), lacks a sequence,
            names other classes, or has an image without label, a label without image, or two cases of one name.
    """
    root = Path(dataset_dir).absolute()
    source = _description(root)
    if source is None:
        return None
    content = read_json(source, kind="datalist" if source == root else "description of the data set")
    raw = _is_raw(content, source)
    if source != root and not _is_description(content):
        _refuse_beside_images(source)
        return None
    _check_alone(source, is_case, kind="nnU-Net" if raw else "the Decathlon")
    channels = channel_names(content, source, sequences=sequences, names=names)
    listing = _listing(root, source, content, channels, raw=raw, labelled=labelled)
    check_names(listing.cases, source=source)
    if labelled and classes:
        _renumber(listing, label_values(content, source, classes=classes, synonyms=synonyms))
    logger.info("%s: read as %s", root, _summary(listing, channels, content, raw=raw))
    return Described(root if root.name in FOLDERS else source, listing)


def _listing(root: Path, source: Path, content: Any, channels: Sequence[str], *, raw: bool, labelled: bool) -> Listing:
    if root.name in FOLDERS and root.is_dir():
        return Listing({"training": [], "validation": [], "test": images_in(root, channels, raw=raw)}, {})
    if raw or (channels and not _has_list(content)):
        return cases_in(source.parent, channels, raw=raw, labelled=labelled)
    return listed_cases(content, source, labelled=labelled)


def _renumber(listing: Listing, values: list[int] | None) -> None:
    for case in listing.cases if values else ():
        if "label" in case:
            case["label_values"] = values


def _summary(listing: Listing, channels: Sequence[str], content: Mapping[str, Any], *, raw: bool) -> str:
    kind = "a raw folder of nnU-Net" if raw else "a list as of the Decathlon" if channels else "a datalist"
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in listing.lists.items() if cases) or "no case"
    named = f"; channels {', '.join(channels)}" if channels else ""
    return f"{kind}, {counts}{named}; labels {content.get('labels', 'without names')}"


def _description(root: Path) -> Path | None:
    """The file that describes a data set, if there is one.

    Raises:
        InputError: when there is none beside `imagesTr`.
    """
    if is_list(root):
        return root
    beside = [root / DESCRIPTION, *([root.parent / DESCRIPTION] if root.name in FOLDERS else [])]
    found = next((path for path in beside if os.path.isfile(path)), None)  # noqa: PTH113  # as `is_list`
    if found is None and os.path.isdir(root / "imagesTr"):  # noqa: PTH112
        rule = f"holds imagesTr, but no {DESCRIPTION} that names channels and labels; to segment, give imagesTs itself"
        raise InputError([("", str(root), rule)])
    return found


def _refuse_beside_images(source: Path) -> None:
    """Raises an error where `imagesTr` lies beside a description that tells nothing; else it is of something else."""
    if (source.parent / "imagesTr").is_dir():
        rule = "describes neither a data set of the Decathlon ('modality' and a list 'training') nor one of nnU-Net "
        raise InputError([("", str(source), rule + "('channel_names', and <case>_0000 files in imagesTr)")])


def _is_description(content: Any) -> bool:
    return isinstance(content, dict) and (_has_list(content) or not {"channel_names", "modality"}.isdisjoint(content))


def _has_list(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("training"), list)


def _is_raw(content: Any, source: Path) -> bool:
    """Whether scans are to be read from nnU-Net's files, not from a list.

    Raises:
        InputError: when both can be done.
    """
    if not isinstance(content, dict) or {"channel_names", "modality"}.isdisjoint(content):
        return False
    files = _volumes(source.parent)
    channels = [name for name in files if CHANNEL.fullmatch(name)]
    there = _has_list(content) and _is_there(content["training"], source.parent)
    if "channel_names" in content:
        _check_one_reading(content, source, listed=there, channels=len(channels))
        _check_called(source.parent, [name for name in files if name not in channels])
    return bool(channels) and not there


def _check_called(folder: Path, others: Sequence[str]) -> None:
    if others:
        rule = f"nnU-Net's images are called <case>_0000, <case>_0001 ...; these are not: {', '.join(others):.200}"
        raise InputError([("", str(folder), rule)])


def _volumes(folder: Path) -> list[str]:
    """Names of the images, without endings."""
    folders = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    return [stem(path) for images in folders for path in visible(images) if is_volume(path)]


def _check_one_reading(content: Mapping[str, Any], source: Path, *, listed: bool, channels: int) -> None:
    """Refuses nnU-Net's description with a list of the Decathlon, and with other channels by `modality`."""
    one, other = (content.get(key) for key in ("channel_names", "modality"))
    if listed:
        rule = f"is ambiguous: nnU-Net's 'channel_names' and {channels} files <case>_0000 in imagesTr, or the "
        rule += f"Decathlon's list 'training' of {len(content['training'])} cases? Keep one"
        raise InputError([("", str(source), rule)])
    if other is not None and one != other:
        rule = f"is ambiguous: channels {one} by nnU-Net's 'channel_names', or {other} by 'modality'? Keep one"
        raise InputError([("", str(source), rule)])


def _is_there(records: Sequence[Any], folder: Path) -> bool:
    """Whether any image of a list is a file."""
    images = [record.get("image") if isinstance(record, dict) else record for record in records]
    return any(isinstance(image, str) and (folder / image).is_file() for image in images)


def _check_alone(source: Path, is_case: Callable[[Path], bool], *, kind: str) -> None:
    if source.name != DESCRIPTION:
        return
    others = [*FOLDERS, *FOLDERS.values()]
    cases = [path.name for path in folders_in(source.parent) if path.name not in others and is_case(path)]
    if cases:
        rule = f"is ambiguous: a data set of {kind}, as its {DESCRIPTION} says, or {len(cases)} folders of cases "
        raise InputError([("", str(source.parent), f"{rule}({', '.join(cases):.100})? Move one of them elsewhere")])
