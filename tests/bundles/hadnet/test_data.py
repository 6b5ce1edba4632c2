"""Cases are found in the folders of any year, sequences beside each other, and nothing is guessed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from hadnet.shared.data import evaluation_cases, find_scans, read_split, root_folder, sequence_files
from hadnet.shared.validation import InputError
from tests.bundles.hadnet.files import SEQUENCES, YEARS, scan, write, write_case

STUDENT = ("flair", "t1", "t2")


def names(paths: dict[str, Path] | None) -> dict[str, str]:
    assert paths is not None
    return {key: path.name for key, path in paths.items()}


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("clicked", SEQUENCES)
def test_sequences_are_found_from_any_of_them(year: int, clicked: str, tmp_path: Path) -> None:
    """t1 is no beginning of t1ce, t1c or t1n."""
    folder = write_case(tmp_path / "BraTS_1-000", year=year)
    found = sequence_files(folder / f"BraTS_1-000{YEARS[year][clicked]}.nii.gz", SEQUENCES)
    assert names(found) == {name: f"BraTS_1-000{YEARS[year][name]}.nii.gz" for name in SEQUENCES}


def test_bare_names_other_case_and_uncompressed_files(tmp_path: Path) -> None:
    for name in ("FLAIR.nii", "T1CE.NII.GZ", "t1.nii.gz", "T2.nii"):
        (tmp_path / name).touch()
    found = sequence_files(tmp_path / "t1.nii.gz", SEQUENCES)
    assert names(found) == {"flair": "FLAIR.nii", "t1ce": "T1CE.NII.GZ", "t1": "t1.nii.gz", "t2": "T2.nii"}


def test_patients_side_by_side_are_told_apart(tmp_path: Path) -> None:
    for patient in ("a", "a_b", "c"):
        for name in STUDENT:
            write(tmp_path / f"{patient}_{name}.nii.gz", scan())
    assert names(sequence_files(tmp_path / "a_b_t1.nii.gz", ["t2"])) == {"t2": "a_b_t2.nii.gz"}
    assert [case["case"] for case in find_scans(tmp_path, sequences=STUDENT)] == ["a", "a_b", "c"]


def test_absent_sequence_is_where_the_challenge_would_have_put_it(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    (folder / "X_t2.nii.gz").unlink()
    assert names(sequence_files(folder / "X_flair.nii.gz", ["t2", "adc"])) == {
        "t2": "X_t2.nii.gz",
        "adc": "X_adc.nii.gz",
    }


def test_two_files_for_one_sequence_are_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    (folder / "X_t1c.nii.gz").touch()
    with pytest.raises(InputError, match=r"t1ce is ambiguous: X_t1c.nii.gz or X_t1ce.nii.gz\?"):
        sequence_files(folder / "X_flair.nii.gz", SEQUENCES)


def test_volume_of_all_sequences_has_no_files_beside_it(tmp_path: Path) -> None:
    assert sequence_files(write(tmp_path / "BRATS_001.nii.gz", scan()), SEQUENCES) is None


@pytest.mark.parametrize("year", YEARS)
def test_split_by_grade(year: int, tmp_path: Path) -> None:
    """A fifth of each grade validates; the split depends on the seed."""
    for grade, count in (("HGG", 15), ("LGG", 5)):
        for number in range(count):
            write_case(tmp_path / grade / f"{grade}_{number:02d}", year=year)
    splits = [read_split(tmp_path, sequences=SEQUENCES, seed=seed) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        counts = Counter(case["case"][:3] for case in split["validation"])
        assert counts == {"HGG": 3, "LGG": 1}
        assert len(split["training"]) == 16
        assert split["test"] == []
    case = splits[0]["training"][0]
    folder = tmp_path / case["case"][:3] / case["case"]
    assert case["image"] == str(folder / f"{case['case']}{YEARS[year]['flair']}.nii.gz")
    assert case["label"] == str(folder / f"{case['case']}{YEARS[year]['label']}.nii.gz")


def test_paper_split_of_brats_2019_is_reproducible_by_grade(tmp_path: Path) -> None:
    """335 cases, 259 of high and 76 of low grade: 67 validate, 15 of them of low grade."""
    for grade, count in (("HGG", 259), ("LGG", 76)):
        for number in range(count):
            folder = tmp_path / grade / f"{grade}_{number:03d}"
            folder.mkdir(parents=True)
            (folder / f"{folder.name}_flair.nii.gz").touch()
    split = read_split(tmp_path, sequences=STUDENT)
    assert Counter(case["case"][:3] for case in split["validation"])["LGG"] == pytest.approx(15, abs=1)
    assert len(split["validation"]) == pytest.approx(67, abs=1)
    assert len(split["training"]) + len(split["validation"]) == 335


def test_split_file_with_test_cases(tmp_path: Path) -> None:
    for name in "abc":
        write_case(tmp_path / "data" / name, named=False)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["c"]}))
    split = read_split(tmp_path / "data", file, sequences=["t1"])
    assert [split[name][0]["case"] for name in ("training", "validation", "test")] == ["a", "b", "c"]
    assert split["test"][0]["image"] == str(tmp_path / "data/c/t1.nii.gz")
    assert evaluation_cases(split) == split["test"]
    assert evaluation_cases(split, "training") == split["training"]
    assert evaluation_cases({**split, "test": []}) == split["validation"]
    with pytest.raises(InputError, match="subset: must be one of training, validation, test, got tests"):
        evaluation_cases(split, "tests")


def test_overlapping_split_lists_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_case(tmp_path / "data" / name)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["a"]}))
    with pytest.raises(InputError, match=r"case a: .*split\.json: is listed twice"):
        read_split(tmp_path / "data", file, sequences=SEQUENCES)


def test_case_in_both_grades_is_refused(tmp_path: Path) -> None:
    for grade in ("HGG", "LGG"):
        write_case(tmp_path / grade / "X")
    with pytest.raises(InputError, match=r"case X: .*LGG/X: the case is in .*HGG/X too"):
        read_split(tmp_path, sequences=SEQUENCES)


def test_scans_of_every_kind_of_folder(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "data/HGG/X")
    shutil.copy(folder / "X_t1.nii.gz", tmp_path / "data/Y.nii.gz")
    flair = str(folder / "X_flair.nii.gz")
    volume = {"case": "Y", "image": str(tmp_path / "data/Y.nii.gz")}
    assert find_scans(tmp_path / "data", sequences=STUDENT) == [{"case": "X", "image": flair}, volume]
    assert find_scans(tmp_path / "data/HGG", sequences=STUDENT) == [{"case": "X", "image": flair}]
    assert find_scans(folder, sequences=STUDENT) == [{"case": "X", "image": flair}]
    assert find_scans(flair, sequences=STUDENT) == [{"case": "X", "image": flair}]
    assert find_scans(tmp_path / "data/Y.nii.gz", sequences=STUDENT) == [volume]
    assert root_folder(flair) == str(folder)
    assert root_folder(folder) == str(folder)


def test_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither cases with flair, t1, t2 nor a volume"):
        find_scans(tmp_path, sequences=STUDENT)


def test_hidden_files_of_another_system_are_passed_over(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(b"\0")
    (tmp_path / "._X.nii.gz").touch()
    assert names(sequence_files(folder / "X_flair.nii.gz", SEQUENCES))["t1"] == "X_t1.nii.gz"
    assert [case["case"] for case in find_scans(tmp_path, sequences=SEQUENCES)] == ["X"]


def test_one_file_for_two_sequences(tmp_path: Path) -> None:
    """A link from one sequence to another would be segmented as if it were both."""
    flair = tmp_path / "X_flair.nii.gz"
    flair.touch()
    (tmp_path / "X_t2.nii.gz").symlink_to(flair.name)
    with pytest.raises(InputError, match=r"X_flair\.nii\.gz: is the file of another sequence too"):
        sequence_files(flair, ["flair", "t1", "t2"])
    assert sequence_files(flair, ["flair", "t1"]) == {"flair": flair, "t1": tmp_path / "X_t1.nii.gz"}
