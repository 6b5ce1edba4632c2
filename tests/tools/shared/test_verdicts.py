"""A case that was found good is read once, whoever starts again; one that was not, or has changed, is read."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

cases: Any = importlib.import_module("tools.shared.validation")
verdicts: Any = importlib.import_module("tools.shared.verdicts")

LABEL = np.zeros((4, 5, 6), np.uint8)
LABEL[1:3, 2, 3] = 1


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A good case, and a place of its own for verdicts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {"case": "a", "image": str(tmp_path / "a.nii"), "label": str(tmp_path / "a_label.nii.gz")}
    for key in ("image", "label"):
        nibabel.save(nibabel.Nifti1Image(LABEL, np.eye(4)), found[key])
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were read, in order."""
    seen: list[str] = []
    read = cases.read_volume

    def noted(path: str, **options: Any) -> Any:
        seen.append(Path(path).name)
        return read(path, **options)

    monkeypatch.setattr(cases, "read_volume", noted)
    return seen


def file() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "monai_bundle_checks/good.json"


def test_good_cases_are_read_once(case: dict[str, str], reads: list[str]) -> None:
    for _ in range(2):
        cases.check_cases([[case]])
    assert reads == ["a.nii", "a_label.nii.gz"]
    cases.check_cases([[case, {**case, "case": "b"}]])
    assert len(reads) == 4


@pytest.mark.parametrize(
    "rules",
    [
        {"label_values": [[0, 1, 2]]},
        {"foreground": False},
        {"label": None},
        {"settings": {"size": 3}},
        {"further": lambda *_: [], "settings": 4},
    ],
)
def test_other_rules(rules: dict[str, Any], case: dict[str, str], reads: list[str]) -> None:
    cases.check_cases([[case]])
    reads.clear()
    cases.check_cases([[case]], **rules)
    assert reads


def test_other_content_of_the_same_size_and_time(case: dict[str, str], reads: list[str]) -> None:
    cases.check_cases([[case]])
    path, before = Path(case["image"]), os.stat(case["image"])  # noqa: PTH116
    time.sleep(0.02)  # more than the clock of the file system steps
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cases.check_cases([[case]])
    assert len(reads) == 4


def test_bad_cases_are_not_kept(case: dict[str, str], reads: list[str]) -> None:
    """Neither those that the shared rules reject nor those that a bundle's own do."""
    for rules in ({"label_values": [[0, 2]]}, {"further": lambda *_: [("image", "is odd")]}):
        for _ in range(2):
            with pytest.raises(cases.InputError):
                cases.check_cases([[case]], **rules)
    assert len(reads) == 8
    assert not file().exists()


def test_other_version(case: dict[str, str], reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cases.check_cases([[case]])
    monkeypatch.setattr(verdicts.nibabel, "__version__", "0")
    cases.check_cases([[case]])
    assert len(reads) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": 1}', b"[1, 2]", b"null"])
def test_damaged_file(content: bytes, case: dict[str, str], reads: list[str]) -> None:
    file().parent.mkdir(parents=True)
    file().write_bytes(content)
    for _ in range(2):
        cases.check_cases([[case]])
    assert len(reads) == 2


def test_no_place_for_verdicts(
    case: dict[str, str], reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        cases.check_cases([[case]])
    assert len(reads) == 4


def test_others_write_too(case: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process has added meanwhile stays; the oldest are dropped."""
    mine = verdicts.Verdicts("rules")
    mine.new.append(mine.key(case))
    file().parent.mkdir(parents=True)
    file().write_text(json.dumps(["other", "another"]))
    mine.save()
    assert json.loads(file().read_text()) == ["other", "another", mine.new[0]]
    monkeypatch.setattr(verdicts, "MOST", 2)
    mine.save()
    assert json.loads(file().read_text()) == ["another", mine.new[0]]


def test_first_process_looks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process gets its answer, unless it was about something else."""
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    monkeypatch.setattr(verdicts, "torchrun_store", lambda: store)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    answers = []
    for rank, subject in ((0, "scans"), (1, "scans"), (1, "others")):
        monkeypatch.setattr(verdicts, "_calls", iter([7]))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        answers.append(verdicts.by_first_process(lambda rank=rank: [["case", "file", rank]], subject))
    assert [answer[0][2] for answer in answers] == [0, 0, 1]
