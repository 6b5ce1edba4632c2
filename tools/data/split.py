"""Reproducible splits into training, validation and test, stored as a file."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.shared.files import atomic_write
from tools.shared.patients import by_patient, expanded
from tools.shared.scans import find_volume, folders_in, scans_in, stem
from tools.shared.stacks import read_info

logger = logging.getLogger(__name__)


def split(
    data: str,
    output: str,
    *,
    validation: float | int = 0.2,
    test: float | int = 0,
    seed: int = 123,
    count: int | None = None,
    group: str | None = None,
) -> Path:
    """Divide the cases of the folder DATA into training, validation and test and write the split to the file OUTPUT.

    A case is a sub-folder; in a folder without sub-folders it is a volume, named without its ending. Sorted patients
    are shuffled with the seed, so the split depends on names (and groups) alone. Cases of one patient are in one part,
    as far as names tell patients: BraTS-GLI-00001-000 and -001, patient001 and patient001_0, sub-01_ses-1 and -2.

    Args:
        data: data folder.
        output: JSON file to write: {"seed": 123, "training": [ids], "validation": [ids]}, ids sorted. With a test part
            or groups it also holds the command, and "test": [ids].
        validation: share of the patients between 0 and 1, or their number (1 or more).
        test: share or number of the patients for the test, 0 for none.
        seed: seed of the shuffle.
        count: use this many patients, drawn with the same seed. Default: all.
        group: FILE:KEY, each part of the split gets its share of every group: the value of the line "KEY: value" in the
            file FILE of a patient's first case, for example Info.cfg:Group.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: DATA is not a folder or holds no case, or a case has no FILE.
        ValueError: COUNT exceeds the patients there are, a side of the split would be empty, a FILE has no line KEY, or
            two files of DATA could be one case.
    """
    patients = find_patients(Path(data))
    cases = sorted(patients)  # the first of each patient
    total = len(cases) if count is None else count
    if total not in range(1, len(cases) + 1):
        raise ValueError(f"{data}: {total} cases asked for, the folder holds {len(cases)}")
    held_out, tested = (_number(share, total) for share in (validation, test))
    if held_out < 1 or tested < 0 or held_out + tested not in range(1, total) or (held_out + tested) % 1:
        raise ValueError(
            f"{data}: validation={validation} and test={test} of {total} cases: take shares between 0 and 1 or whole "
            "numbers, so that each side gets at least one case"
        )
    drawn = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    if group is not None:
        drawn = _in_turn(drawn, [_group(Path(data, case), group) for case in drawn])
    parts = np.split(drawn[:total], [int(held_out), int(held_out + tested)])
    names = ("validation", "test", "training")
    lists = expanded({name: part.tolist() for name, part in zip(names, parts, strict=True)}, patients)
    content: dict[str, Any] = {"seed": seed, "training": lists["training"], "validation": lists["validation"]}
    if test or group:
        options = {"validation": validation, "test": test, "seed": seed, "count": count, "group": group}
        words = [f"--{name} {value}" for name, value in options.items() if value is not None]
        content = (
            {"command": f"python -m tools split DATA OUTPUT {' '.join(words)}"} | content | {"test": lists["test"]}
        )

    path = Path(output)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
    sizes = ", ".join(f"{len(part)} {name}" for name, part in lists.items())
    logger.info("%s: %s cases", path, sizes)
    return path


def find_cases(folder: Path) -> list[str]:
    """Sorted names of the cases in `folder`: its sub-folders or, where it has none, its volumes without their endings.

    Raises:
        FileNotFoundError: `folder` is not a folder or holds no case.
        ValueError: two files could be one case.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    names = [path.name for path in folders_in(folder)] or [stem(path) for path in scans_in(folder)]
    if not names:
        raise FileNotFoundError(f"{folder} holds no case")
    return sorted(names)


def find_patients(folder: Path) -> dict[str, list[str]]:
    """Cases of every patient in `folder`, by the name of the first; raises as `find_cases`."""
    return by_patient(find_cases(folder))


def case_path(folder: Path, case: str) -> Path:
    """The folder of a case, or its file.

    Raises:
        FileNotFoundError: there is none.
    """
    found = folder / case if (folder / case).is_dir() else find_volume(folder, case)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no case {case}")
    return found


def _number(share: float, total: int) -> float:
    return round(share * total) if 0 < share < 1 else share


def _group(case: Path, group: str) -> str:
    name, _, key = group.partition(":")
    if not (case / name).is_file():
        raise FileNotFoundError(f"{case / name} is missing")
    values = read_info(case / name)
    if key not in values:
        raise ValueError(f"{case / name}: has no line '{key}: ...'")
    return values[key]


def _in_turn(cases: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Reorders shuffled cases so that any stretch of them holds the groups in about their proportions."""
    sizes, seen = Counter(groups), Counter[str]()
    places = []
    for group in groups:
        seen[group] += 1
        places.append((seen[group] - 0.5) / sizes[group])
    return [cases[i] for i in np.argsort(places, kind="stable")]
