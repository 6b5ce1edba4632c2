"""Where the scans lie: ACDC as distributed or re-organised, corrupted and foreign test sets; their slices in memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from monai.utils import convert_to_tensor
from tqdm import tqdm

from .layouts import described_cases, is_patient, is_reorganised, labelled_cases, patient_folders, with_patients
from .shared.datasets import is_list, root_of_list
from .shared.dicom import dicom_scans
from .shared.lists import SPLITS, read_split_file
from .shared.patients import by_patient, check_patients, draw, expanded
from .shared.scans import (
    SUFFIXES,
    check_folders,
    check_names,
    existing_folder,
    problem_of_name,
    scans_in,
    single_scan,
    stem,
)
from .shared.stacks import read_info
from .shared.validation import InputError
from .splits import published_split

__all__ = ["SliceDataset", "evaluation_cases", "find_images", "read_split", "root_folder"]

logger = logging.getLogger(__name__)

SERIES = "_4d"
CLEAN = "clean"
IMAGES = ("ED_img", "ES_img")

Case = dict[str, Any]


def read_split(
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    *,
    setting: str | float | None = None,
    cval: int = 0,
    strict: bool = True,
    seed: int = 123,
    validation: float = 0.2,
    label_order: Sequence[str] = ("RV", "MYO", "LV"),
) -> dict[str, list[Case]]:
    """Lists the labelled ED and ES volumes of a data set by split; both frames of a patient are in the same.

    Args:
        dataset_dir: folder of patients, each as ACDC distributes it (`patientNNN/` with `Info.cfg`,
            `patientNNN_frameFF.nii.gz` and `..._gt.nii.gz`; also below `training/` and `testing/`) or re-organised
            (`<patient>/{ED,ES}_{img,seg}.nii.gz`); or a data set that describes itself, see `datasets.described`.
        split_file: JSON file with lists of patients, of a described data set of cases; see `lists.read_split_file`.
        setting: instead of a file, a setting of the authors, see `published_split`; their patient `001` is the folder
            `001` or `patient001`.
        cval: which of the published draws.
        strict: keeps patients that train out of the published validation lists.
        seed: seed of the draw when there is neither file nor setting.
        validation: fraction of the patients for validation then, the same of every `Group` in `Info.cfg`; patients
            below `testing/` are the test split.
        label_order: structures of the values 1, 2, ... of label maps; a described data set may have others.

    Returns:
        `{"training": cases, "validation": cases, "test": cases}`, a case being `{"case", "patient", "frame", "image",
        "label"}`, for example `{"case": "patient001_ED", "patient": "patient001", "frame": "ED", ...}`.

    Raises:
        InputError: when the folder does not exist or a patient has none in it, the split file is damaged or lists a
            patient twice, the setting is unknown or asks for too many patients, or `Info.cfg` names a frame that is
            not there, or as `datasets.described`.
    """
    if setting is None and (listed := described_cases(dataset_dir, label_order)) is not None:
        return with_patients(listed.split(split_file, validation=validation, seed=seed), listed.listing.patients)
    root = existing_folder(dataset_dir)
    folders = patient_folders(root)
    logger.info("%s: read as %d folders of patients", root, len(folders))
    known = _known(folders)
    if split_file is not None and setting is not None:
        raise InputError([("", str(split_file), f"split_file and setting {setting} exclude each other")])
    if split_file is not None:
        split = _listed(split_file, known)
    elif setting is not None:
        split = published_split(setting, cval, strict=strict)
    else:
        split = _drawn(folders, root, validation=validation, seed=seed)
    _check_folders(split, known, root)
    cases = {key: labelled_cases([folders[known[name]] for name in split[key]]) for key in SPLITS}
    if setting is None:  # published lists may overlap, as `strict` allows
        check_names(chain.from_iterable(cases.values()))
    return cases


def _known(names: Iterable[str]) -> dict[str, str]:
    """Folders by their names, and by those of the authors: `001` is `patient001`."""
    every = list(names)
    return {_number(name): name for name in every} | dict(zip(every, every, strict=True))


def _listed(split_file: str | Path, known: Mapping[str, str]) -> dict[str, list[str]]:
    """Reads the patients of a file, in which none may be in two lists under two of their names."""
    split = read_split_file(split_file)
    check_patients({key: [known.get(name, name) for name in split[key]] for key in SPLITS}, source=split_file)
    return split


def _check_folders(split: Mapping[str, Sequence[str]], known: Mapping[str, str], root: Path) -> None:
    absent = [(name, str(root / name), "has no folder") for key in SPLITS for name in split[key] if name not in known]
    if absent:
        raise InputError(absent)


def _drawn(folders: Mapping[str, Path], root: Path, *, validation: float, seed: int) -> dict[str, list[str]]:
    """Draws patients with all versions of them; those below `testing` are the test split, by themselves."""
    test = [name for name, folder in folders.items() if folder.parent != root and folder.parent.name == "testing"]
    groups = by_patient([name for name in folders if name not in test])
    if len(groups) < 2:
        raise InputError([("", str(root), f"needs the folders of two patients or more to train, holds {len(groups)}")])
    kinds = {name: read_info(folders[name] / "Info.cfg").get("Group", "") for name in groups}
    split = expanded(draw(kinds, validation=validation, seed=seed), groups) | {"test": test}
    check_patients(split, source=root)
    return split


def evaluation_cases(
    cases: Mapping[str, list[Case]], *, test_sets: Mapping[str, str] | None = None, subset: str | None = None
) -> list[Case]:
    """Lists the cases of one or several test sets.

    Args:
        cases: what `read_split` returned.
        test_sets: further data sets by name: folders in any layout of `read_split`. Where one holds patients of the
            split, or versions `<patient>_<j>` of them, those of the patients in `subset` are taken, else all.
        subset: which split to test; by default `test`, or `validation` where the split has no test patients.

    Returns:
        Cases with their set under `set`: `clean` for those of the split. Names are unique: those of a further set
        start with its name, for example `RandomMotion/patient001_0_ED`. Those that `corrupt.yaml` made, which lie
        beside a `manifest.json`, are marked `scaled`: their intensities must not be scaled again.

    Raises:
        InputError: when `subset` is no split, or a set is called `clean`, has no folder or none of the patients.
    """
    subset, test_sets = subset or ("test" if cases["test"] else "validation"), test_sets or {}
    if subset not in SPLITS:
        raise InputError([("", "subset", f"must be one of {', '.join(SPLITS)}, got {subset}")])
    _check_set_names(test_sets)
    logger.info("Testing on the %s split", subset)
    tested, known = ({_number(case["patient"]) for key in keys for case in cases[key]} for keys in ([subset], SPLITS))
    found = [{**case, "set": CLEAN} for case in cases[subset]]
    for name, folder in test_sets.items():
        root = existing_folder(folder, f"test set {name}")
        found += _further_cases(name, root, known=known, tested=tested, subset=subset)
    return found


def _check_set_names(names: Iterable[str]) -> None:
    if CLEAN in names:
        raise InputError([("", "test_sets", f"{CLEAN} is the name of the split's own scans")])
    if problems := [("", f"test_sets {name!r}", rule) for name in names if (rule := problem_of_name(name))]:
        raise InputError(problems)


def _further_cases(name: str, root: Path, *, known: set[str], tested: set[str], subset: str) -> list[Case]:
    """Lists the cases of a further set: those of the tested patients, or all where it has none of the split's."""
    sources = {path: _source(path.name, known) for path in patient_folders(root).values()}
    foreign = known.isdisjoint(map(_number, sources.values()))
    taken = [path for path, source in sources.items() if foreign or _number(source) in tested]
    if not taken:
        raise InputError([("", str(root), f"test set {name} holds no patient of the {subset} split")])
    marks = {"set": name} | ({"scaled": "by corrupt.yaml"} if (root / "manifest.json").is_file() else {})
    return [
        case | {"case": f"{name}/{case['case']}", "patient": sources[Path(case["image"]).parent]} | marks
        for case in labelled_cases(taken)
    ]


def _number(patient: str) -> str:
    """Returns the name of a patient without ACDC's `patient`."""
    return patient.removeprefix("patient")


def _source(folder: str, known: set[str]) -> str:
    """Returns the patient of a folder `<patient>` or `<patient>_<j>`."""
    return folder if _number(folder) in known else re.sub(r"_\d+$", "", folder)


def find_images(dataset_dir: str | Path, *, series: Any = None, phase: int | None = None) -> list[Case]:
    """Lists the scans to segment: a volume, a folder of volumes, patients in the layouts of `read_split`, or DICOM.

    Of a patient the ED and ES frames are taken; label maps (`*_gt`, `*_seg`) and cine series (`*_4d`) are not.

    Args:
        dataset_dir: a volume, a folder of volumes (see `scans.scans_in`), of patients, of one patient, a data set
            that describes itself (see `datasets.described`), or a file or folder of MR series.
        series: UID or number of the series of DICOM to segment, see `dicom.find_series`.
        phase: which of several DICOM images at each position.

    Returns:
        Cases `{"case", "image"}`, sorted by name; with `series` where they are DICOM.

    Raises:
        InputError: when `dataset_dir` does not exist or holds no NIfTI or NRRD volume, a file of another format is
            given, a folder beside those of patients is none, two files could be one scan, two cases have one name, or
            an `Info.cfg` names a frame that is not there, or as `dicom.find_series`.
    """
    if (scans := dicom_scans(dataset_dir, modality="MR", series=series, phase=phase)) is not None:
        return scans
    if (listed := described_cases(dataset_dir, None)) is not None:
        return listed.scans()
    if (scan := single_scan(dataset_dir)) is not None:
        name = stem(scan)
        return [{"case": f"{scan.parent.name}_{name[:2]}" if name in IMAGES else name, "image": str(scan)}]
    return _images_in(existing_folder(dataset_dir))


def _images_in(root: Path) -> list[Case]:
    alone = is_reorganised(root) or (root / "Info.cfg").is_file()
    cases = _images_of_patients(root, alone=alone)
    flat = [] if alone else [path for path in scans_in(root) if not stem(path).lower().endswith(SERIES)]
    logger.info("%s: read as %d frames of patients and %d volumes", root, len(cases), len(flat))
    if not (cases := cases + [{"case": stem(path), "image": str(path)} for path in flat]):
        raise InputError([("", str(root), f"holds neither patients nor a volume {' '.join(SUFFIXES)}")])
    check_names(cases)
    return cases


def _images_of_patients(root: Path, *, alone: bool) -> list[Case]:
    """Lists the images of the patients below a folder, and of the folder itself if it is a patient's."""
    folders = patient_folders(root).values()
    patients = [folder for folder in folders if is_patient(folder)]
    check_folders(folders, patients)
    patients += [root] if alone else []
    return [{"case": case["case"], "image": case["image"]} for case in labelled_cases(patients)]


def root_folder(dataset_dir: str | Path) -> str:
    """Returns the folder below which results are placed as the scans are.

    It is `dataset_dir`, or the folder of a single volume; of one re-organised patient, the folder that it lies in.
    """
    root = Path(dataset_dir).absolute()
    if is_list(root):
        return str(root_of_list(root))
    folder = root.parent if root.is_file() else root
    return str(folder.parent if folder.is_dir() and is_reorganised(folder) else folder)


class SliceDataset(Dataset):
    """The labelled 2D slices `[..., z]` of volumes and some of those without any label, kept in memory.

    Every volume is read once. What `transform` gets is `{"image": (1, H, W) float32, "label": (1, H, W) uint8}`, plain
    tensors that it must not change in place.

    Args:
        data: volumes `{"image": path, "label": path}`.
        volume_transform: deterministic, from such a volume to tensors `(1, H, W, D)`.
        transform: of a slice, usually random; applied at every access.
        empty: share of the slices, below 1, that may be without label; where there are more, they are thinned out
            evenly.
        num_workers: threads that read.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        volume_transform: Callable[[Any], Any],
        transform: Callable[[Any], Any],
        empty: float = 0.0,
        num_workers: int = 4,
    ) -> None:
        def slices(volume: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
            return list(_slices(volume_transform(dict(volume))))

        with ThreadPool(num_workers or 1) as pool:
            stacks = list(tqdm(pool.imap(slices, data), "Reading slices", len(data), unit="volume"))
        found = [item for stack in stacks for item in stack]
        blank = [index for index, item in enumerate(found) if not item["label"].any()]
        kept = min(len(blank), int((len(found) - len(blank)) * empty / (1 - empty)))
        left_out = set(blank) - {blank[len(blank) * turn // kept] for turn in range(kept)}
        super().__init__([item for index, item in enumerate(found) if index not in left_out], transform)


def _slices(volume: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    image = convert_to_tensor(volume["image"], dtype=torch.float32, track_meta=False)
    label = convert_to_tensor(volume["label"], dtype=torch.uint8, track_meta=False)
    for z in range(label.shape[-1]):
        yield {"image": image[..., z].contiguous(), "label": label[..., z].contiguous()}
