"""Split files and other lists: what is read, in which encoding, and what is rejected by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd.data import find_scans
from lachinov_distillation.datalist import read_datalist
from tools.shared.lists import read_json, read_split_file
from tools.shared.stacks import read_info

GOOD = {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(encoding: str, tmp_path: Path) -> None:
    text = json.dumps(GOOD, indent=1).replace("\n", "\r\n")
    (tmp_path / "s.json").write_bytes(text.encode(encoding))
    assert read_split_file(tmp_path / "s.json") == GOOD
    (tmp_path / "Info.cfg").write_bytes("ED: 1\r\nES: 12\r\nGroup: DCM\r\nES: 12\r\n".encode(encoding))
    assert read_info(tmp_path / "Info.cfg") == {"ED": "1", "ES": "12", "Group": "DCM"}


def test_info(tmp_path: Path) -> None:
    assert read_info(tmp_path / "Info.cfg") == {}
    (tmp_path / "Info.cfg").write_text("ED: 1\nED: 2\n")
    with pytest.raises(ValueError, match=r"Info\.cfg: ED has two values"):
        read_info(tmp_path / "Info.cfg")
    (tmp_path / "Info.cfg").unlink()
    (tmp_path / "Info.cfg").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"Info\.cfg: Info\.cfg does not exist"):
        read_info(tmp_path / "Info.cfg")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("[" * 100_000, "is no valid JSON"),
        ('{"training": ' + "[" * 50_000 + "]" * 50_000 + "}", "is no valid JSON"),
        ('{"training": [NaN], "validation": []}', r"is no valid JSON \(NaN is no JSON\)"),
        ('{"training": ["a"], "training": ["b"], "validation": []}', r"is no valid JSON \('training' is there twice\)"),
        ("", "is no valid JSON"),
        (b"\xff\xfe\x00", "is no valid JSON"),
        (b"\x80abc", "is no valid JSON"),
    ],
)
def test_what_is_no_json(content: str | bytes, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"s\.json: {rule}"):
        read_split_file(path)
    with pytest.raises(ValueError, match=r"list cannot be read \(.*Is a directory"):
        read_json(tmp_path, kind="list")


@pytest.mark.parametrize(
    ("lists", "rule"),
    [
        ({"train": ["a"], "val": ["b"]}, "'train' is none of training, validation, test, is it 'training'?"),
        ({"train": ["a"], "val": ["b"]}, "'val' is none of training, validation, test, is it 'validation'?"),
        (GOOD | {"testing": ["e"]}, "'testing' is none of training, validation, test, is it 'test'?"),
        (GOOD | {"test_cases": ["e"]}, "'test_cases' is none of training, validation, test, is it 'test'?"),
        (GOOD | {"Training": ["e"]}, "'Training' is none of training, validation, test, is it 'training'?"),
        (GOOD | {"test": None}, "must hold lists of case names under 'training' and 'validation'"),
        (GOOD | {"training": {"a": 1}}, "must hold lists of case names under 'training' and 'validation'"),
        (GOOD | {"training": [1]}, "entry 1 of 'training': a case's name must be text, not 1"),
        (GOOD | {"training": ["a", None]}, "entry 2 of 'training': a case's name must be text, not None"),
        (GOOD | {"test": [["a"]]}, "entry 1 of 'test': a case's name must be text, not ['a']"),
        (GOOD | {"test": ["../a"]}, "entry 1 of 'test': a case's name must be that of a file"),
        (GOOD | {"test": [""]}, "entry 1 of 'test': a case's name must be that of a file"),
        (GOOD | {"test": ["a" * 300]}, "entry 1 of 'test': a case's name may have 200 bytes, this one has 300"),
        (GOOD | {"test": ["a"]}, "case a: "),
    ],
)
def test_lists_that_are_refused(lists: dict[str, Any], rule: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(lists))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_split_file(tmp_path / "s.json")
    assert any(rule in line and "s.json: " in line for line in str(caught.value).splitlines())


def test_descriptions_are_passed_over(tmp_path: Path) -> None:
    more = {"numTraining": 2, "seed": 1, "labels": ["background"], "modality": {"0": "CT"}, "command": "split"}
    (tmp_path / "s.json").write_text(json.dumps(GOOD | more))
    assert read_split_file(tmp_path / "s.json") == GOOD


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"case": "a/b"}, "a case's name must be that of a file"),
        ({"case": ".."}, "a case's name must be that of a file"),
        ({"case": 1}, "must be text"),
        ({"image": 1}, "must"),
        ({"image": ["a.nii"]}, "must"),
        ({"stack": 3}, "must be text"),
    ],
)
def test_records_of_datalists(record: dict[str, Any], rule: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"case": "a", "image": "a.nii", "label": "b.nii"} | record]}))
    with pytest.raises(ValueError, match=rf"list\.json: .*{rule}"):
        read_datalist(path)
    if "stack" not in record:
        with pytest.raises(ValueError, match=rf"list\.json: .*{rule}"):
            find_scans(path)


def test_log_says_which_scans_of_a_datalist_are_segmented(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "dataset.json"
    records = [{"image": f"{name}.nii", "label": "l.nii"} for name in "ab"]
    path.write_text(json.dumps({"training": records, "test": ["./c.nii"], "numTest": 1}))
    assert [case["case"] for case in find_scans(path)] == ["a", "b", "c"]
    assert f"{path}: every list is taken, 2 of training, 1 of test" in caplog.text
    path.write_text(json.dumps({"training": records, "testing": ["./c.nii"]}))
    with pytest.raises(ValueError, match=r"'testing' is none of training, validation, test, is it 'test'\?"):
        find_scans(path)
