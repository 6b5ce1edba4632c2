"""Reproducible splits into training, validation and test, stored as a file."""

import json
import logging
from itertools import filterfalse
from pathlib import Path
from typing import Any

from tools.shared.files import write_text
from tools.shared.patients import by_patient, check_patients, draw, expanded
from tools.shared.scans import find_volume, folders_in, is_volume, scans_in, stem, visible
from tools.shared.stacks import read_info

logger = logging.getLogger(__name__)


def split(
    data: str,
    output: str,
    *,
    validation: float | int = 0.2,
    test: float | int = 0,
    seed: int = 123,
    group: str | None = None,
) -> Path:
    """Divide the cases of the folder DATA into training, validation and test and write the split to the file OUTPUT.

    It is the split that a bundle draws by itself from the same folder with the same seed. A case is a sub-folder, also
    below HGG and LGG; those below testing, beside training, are the test part. In a folder without sub-folders a case
    is a volume, named without its ending. Sorted patients are shuffled with the seed, and each part gets its share of
    every grade (HGG, LGG) and of every Group in Info.cfg, so the split depends on names and these alone. Cases of one
    patient are in one part, as far as names tell patients: BraTS-GLI-00001-000 and -001, patient001 and patient001_0,
    sub-01_ses-1 and -2.

    Args:
        data: data folder.
        output: JSON file to write: {"seed": 123, "training": [ids], "validation": [ids]}, ids sorted. With a test part
            or groups it also holds the command, and "test": [ids].
        validation: share of the patients between 0 and 1, of which there is one at least, or their number (1 or more).
        test: share or number of the patients for the test, 0 for none but those below the folder testing.
        seed: seed of the shuffle.
        group: FILE:KEY, each part of the split gets its share of every group: the value of the line "KEY: value" in the
            file FILE of a patient's first case, for example Info.cfg:Group.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: DATA is not a folder or holds no case, or a case has no FILE.
        ValueError: A side of the split would be empty, a FILE has no line KEY, two files or folders of DATA could be
            one case, or a patient is in the folder testing and beside it.
    """
    root = Path(data)
    cases = _located(root)
    tested = sorted(name for name, path in cases.items() if _part(root, path) == "testing")
    if tested and test:
        raise ValueError(f"{data}: its folder testing is the test part, test={test} cannot be drawn")
    patients = by_patient(list(filterfalse(tested.__contains__, cases)))
    _check_shares(data, validation, test, total=len(patients))
    kinds = {name: _kind(root, cases[name], group) for name in patients}
    drawn = draw(kinds, validation=validation, test=test, seed=seed)
    lists = expanded(drawn, patients)
    lists["test"] = lists["test"] or tested
    check_patients(lists, source=data)
    content: dict[str, Any] = {"seed": seed, "training": lists["training"], "validation": lists["validation"]}
    if lists["test"] or group:
        command = _command({"validation": validation, "test": test, "seed": seed, "group": group})
        content = {"command": command} | content | {"test": lists["test"]}

    path = Path(output)
    write_text(path, json.dumps(content, indent=2) + "\n")
    sizes = ", ".join(f"{len(part)} {name}" for name, part in lists.items())
    logger.info("%s: %s cases", path, sizes)
    return path


def _command(options: dict[str, Any]) -> str:
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return f"python -m tools split DATA OUTPUT {' '.join(words)}"


def find_cases(folder: Path) -> list[str]:
    """Sorted names of the cases in `folder`, see `split`.

    Raises:
        FileNotFoundError: `folder` is not a folder or holds no case.
        ValueError: two files or folders could be one case.
    """
    return sorted(_located(folder))


def find_patients(folder: Path) -> dict[str, list[str]]:
    """Cases of every patient in `folder`, by the name of the first; raises as `find_cases`."""
    return by_patient(find_cases(folder))


def case_path(folder: Path, case: str) -> Path:
    """The folder of a case, or its file.

    Raises:
        FileNotFoundError: there is none.
    """
    found = _located(folder).get(case) or find_volume(folder, case)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no case {case}")
    return found


def _located(root: Path) -> dict[str, Path]:
    """Folders of the cases below `root`, or below those of its folders that hold no scan; else its volumes; by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    folders = [each for entry in folders_in(root) for each in _nested(entry) or [entry]]
    found: dict[str, Path] = {}
    for path in folders or scans_in(root):
        name = path.name if folders else stem(path)
        if found.setdefault(name, path) != path:
            raise ValueError(f"{path}: the case is in {found[name]} too")
    if not found:
        raise FileNotFoundError(f"{root} holds no case")
    return found


def _nested(folder: Path) -> list[Path]:
    """The folders in one that holds no scan itself."""
    return [] if any(map(is_volume, visible(folder))) else folders_in(folder)


def _part(root: Path, case: Path) -> str:
    """Name of the folder between the data folder and a case, empty where there is none."""
    return "" if case.parent == root else case.parent.name


def _check_shares(data: str, validation: float, test: float, *, total: int) -> None:
    counts = [max(1, round(share * total)) if 0 < share < 1 else share for share in (validation, test)]
    if counts[0] < 1 or counts[1] < 0 or sum(counts) not in range(1, total) or any(count % 1 for count in counts):
        raise ValueError(
            f"{data}: validation={validation} and test={test} of {total} cases: take shares between 0 and 1 or whole "
            "numbers, so that each side gets at least one case"
        )


def _kind(root: Path, case: Path, group: str | None) -> str:
    """What is to be in the same proportion in every part."""
    if group is not None:
        return _group(case, group)
    part = _part(root, case)
    grade = "" if part in ("training", "testing") else part
    return grade + read_info(case / "Info.cfg").get("Group", "")


def _group(case: Path, group: str) -> str:
    name, _, key = group.partition(":")
    if not (case / name).is_file():
        raise FileNotFoundError(f"{case / name} is missing")
    values = read_info(case / name)
    if key not in values:
        raise ValueError(f"{case / name}: has no line '{key}: ...'")
    return values[key]
