from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.datalist_files import SPLIT, Data, between, brats, patient, stack


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_copy_in_the_decathlon_is_refused_by_both_names(data: Data) -> None:
    data.decathlon("BRATS_102", patient(4)[::-1, ::-1].astype(np.float32) / 3)
    data.decathlon("BRATS_103", patient(201))
    text = data.invalid("2 problem(s)", "--duplicates drop", "--exclude")
    first, second = re.findall(
        r"case (\S+): (\S+): shows the same scan as case (\S+): (\S+) \(similarity 1.000\)", text
    )
    assert first == (
        "BRATS_102",
        str(data.root / "imagesTr/BRATS_102.nii.gz"),
        "B4",
        str(data.root / "labelled/LGG/B4/B4_t1.nii.gz"),
    )
    assert (second[0], second[2]) == ("BRATS_201", "BRATS_103")


def test_copies_are_dropped(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    """B4 validates, B5 trains; B0 and its copy in the same folder train both; 200 is in the Decathlon too."""
    data.decathlon("BRATS_102", patient(4))
    data.decathlon("BRATS_103", patient(200))
    stack(data.root / "imagesTs/BRATS_202.nii.gz", patient(5))
    brats(data.root / "labelled/HGG/B0_copy", 0)
    with caplog.at_level("INFO"):
        names = data.names(duplicates="drop")
    everything = [name for part in names.values() for name in part]
    assert len({"B0", "B0_copy"} & set(everything)) == 1
    others = {"B1", "B2", "B3", "B4", "B5", "BRATS_100", "BRATS_101", "BRATS_103", "BRATS_201"}
    assert set(everything) - {"B0", "B0_copy"} == others
    for pair in (("BRATS_102", "B4"), ("BRATS_200", "BRATS_103"), ("BRATS_202", "B5")):
        assert re.search(rf"case {pair[0]}: \S+ shows the same scan as case {pair[1]}:", caplog.text)


@pytest.mark.parametrize("copied", ["B0", "B1", "B3", "B5"])
def test_validation_wins_over_training(data: Data, copied: str) -> None:
    """B2 validates: whichever case of training shows the same, before it by name or after it, is left out."""
    folder = data.root / "labelled" / ("HGG" if copied < "B4" else "LGG") / copied
    brats(folder, 2)
    data.invalid(f"case {copied}: ", "the same scan as case B2: ")
    names = data.names(duplicates="drop")
    assert names["validation"] == SPLIT["validation"]
    assert names["training"] == [name for name in SPLIT["training"] if name != copied]


def test_three_of_the_same(data: Data) -> None:
    data.decathlon("BRATS_102", patient(4))
    stack(data.root / "imagesTs/BRATS_202.nii.gz", patient(4))
    text = data.invalid("3 problem(s)")
    assert re.findall(r"case (\S+): \S+: shows the same scan as case (\S+):", text) == [
        ("BRATS_102", "B4"),
        ("BRATS_202", "B4"),
        ("BRATS_202", "BRATS_102"),
    ]
    assert data.names(duplicates="drop") == SPLIT


def test_same_by_way_of_a_third(data: Data) -> None:
    """102 is no copy of B4, but the unlabelled scan is like both: cosines of about 0.74, 0.93 and 0.94."""
    data.decathlon("BRATS_102", between(4, 9, share=0.9))
    stack(data.root / "imagesTs/BRATS_202.nii.gz", between(4, 9, share=0.4))
    text = data.invalid("2 problem(s)")
    assert re.findall(r"case (\S+): \S+: shows the same scan as case (\S+):", text) == [
        ("BRATS_202", "B4"),
        ("BRATS_202", "BRATS_102"),
    ]
    assert data.names(duplicates="drop") == SPLIT


def test_excluded_cases_are_in_no_list_and_move_no_other(data: Data) -> None:
    names = data.names("# hold-out", "B2  # by hand", "", "BRATS_101", "BRATS_200")
    assert names == {
        "training": ["B0", "B1", "B3", "B5", "BRATS_100"],
        "validation": ["B4"],
        "unlabelled": ["BRATS_201"],
    }
    assert data.names('["B2",', '"BRATS_101", "BRATS_200"]') == names


@pytest.mark.parametrize(("lines", "rule"), [(("B1", "B9"), "case B9: "), (('["B1", 7]',), "case 7: ")])
def test_excluded_case_that_is_nowhere(data: Data, lines: tuple[str, ...], rule: str) -> None:
    assert "B1:" not in data.invalid("1 problem(s)", rule, "occurs in no data folder", exclude=lines)


def test_damaged_list_of_excluded_cases(data: Data) -> None:
    data.invalid("exclude.txt: is no valid JSON", exclude=('["B1"',))


def test_excluding_the_copy_settles_it(data: Data) -> None:
    data.decathlon("BRATS_102", patient(4))
    assert data.names("BRATS_102") == SPLIT


@pytest.mark.parametrize("held_out", ["B4", "B5"])
def test_copy_of_a_held_out_case_does_not_come_back(data: Data, held_out: str) -> None:
    data.decathlon("BRATS_102", patient(int(held_out[1])))
    data.invalid("case BRATS_102", f"the same scan as case {held_out}", exclude=(held_out,))
    expected = {part: [name for name in names if name != held_out] for part, names in SPLIT.items()}
    assert data.names(held_out, duplicates="drop") == expected


def test_excluded_case_may_be_damaged(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    flair = data.root / "labelled/HGG/B0/B0_flair.nii.gz"
    flair.write_bytes(b"damaged")
    data.invalid("case B0", f"{flair}: cannot be compared")
    flair.unlink()
    data.invalid("case B0", f"{flair}: flair is missing")
    assert "B0" not in data.names("B0")["training"]
    assert f"excluded case B0: {flair}: cannot be compared" in caplog.text


def test_nothing_left_to_validate_on(data: Data) -> None:
    data.invalid("no case would be left for validation", exclude=("B2", "B4"))
