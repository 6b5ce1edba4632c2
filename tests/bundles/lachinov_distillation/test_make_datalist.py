from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lachinov_distillation.make_datalist import make_datalist
from tests.bundles.hadnet.files import write
from tests.support.datalist_files import MODALITY, SEED, SPLIT, Data, brats, patient, stack
from tools import REPO

DECATHLON_ORDER = ["flair", "t1", "t1ce", "t2"]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_lists(data: Data) -> None:
    names = data.names()
    assert list(names) == ["training", "validation", "unlabelled"]
    assert names == SPLIT


def test_sorted_by_case_whatever_the_source(data: Data) -> None:
    data.decathlon("B0_1", patient(102))
    assert data.names()["training"] == ["B0", "B0_1", *SPLIT["training"][1:]]


def test_entries(data: Data) -> None:
    content = data.make()
    assert content["validation"][1] == {
        "case": "B4",
        "image": "labelled/LGG/B4/B4_t1.nii.gz",
        "label": "labelled/LGG/B4/B4_seg.nii.gz",
        "label_source": "manual",
        "label_order": ["NCR", "ED", "ET", "ET"],
        "stack": None,
    }
    assert content["training"][4] == {
        "case": "BRATS_100",
        "image": "imagesTr/BRATS_100.nii.gz",
        "label": "labelsTr/BRATS_100.nii.gz",
        "label_source": "manual",
        "label_order": ["ED", "NCR", "ET"],
        "stack": DECATHLON_ORDER,
    }
    assert content["unlabelled"][0] == {
        "case": "BRATS_200",
        "image": "imagesTs/BRATS_200.nii.gz",
        "stack": DECATHLON_ORDER,
    }


def test_paths_outside_the_folder_of_the_list_are_absolute(data: Data) -> None:
    folder = str(data.root / "labelled")
    path = make_datalist(str(data.root / "lists/a.json"), labelled=folder, validation=0.34, seed=SEED)
    content = json.loads(path.read_text())
    assert content["validation"][0]["image"] == str(data.root / "labelled/HGG/B2/B2_t1.nii.gz")
    assert content["unlabelled"] == []


def test_same_bytes_every_time(data: Data) -> None:
    data.make()
    first = (data.root / "list.json").read_bytes()
    assert first.endswith(b"}\n")
    data.make()
    assert (data.root / "list.json").read_bytes() == first
    assert len(data.names(validation=0.5)["validation"]) == 3
    assert len({tuple(data.names(seed=seed)["validation"]) for seed in range(5)}) > 1


def test_folders_and_volumes_without_labels(data: Data) -> None:
    brats(data.root / "more/U1", 300)
    content = data.make(unlabelled=str(data.root / "more"))
    assert content["unlabelled"] == [{"case": "U1", "image": "more/U1/U1_t1.nii.gz", "stack": None}]
    stack(data.root / "more/U2.nii.gz", patient(301))
    content = data.make(unlabelled=str(data.root / "more"))
    assert [entry["stack"] for entry in content["unlabelled"]] == [None, ["flair", "t1", "t1ce", "t2"]]


def test_hidden_files_do_not_count(data: Data) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (data.root / folder / "._BRATS_100.nii.gz").write_bytes(b"from a Mac")
    assert data.names() == SPLIT
    for path in data.root.glob("imagesTs/B*"):
        path.unlink()
    (data.root / "list.json").unlink()
    data.invalid("imagesTs: holds no scan")


def test_sequences_as_typed(data: Data) -> None:
    (data.root / "labelled/HGG/B0/B0_t2.nii.gz").unlink()
    data.invalid("case B0", "B0_t2.nii.gz: t2 is missing")
    assert data.make(sequences="flair,t1")["validation"][0]["image"] == "labelled/HGG/B2/B2_flair.nii.gz"


def test_name_of_two_cases(data: Data) -> None:
    stack(data.root / "imagesTs/BRATS_100.nii.gz", patient(300))
    rule = f"imagesTs/BRATS_100.nii.gz: has the name of another case: {data.root / 'imagesTr/BRATS_100.nii.gz'}"
    data.invalid("1 problem(s)", rule)
    data.invalid("1 problem(s)", rule, duplicates="drop")
    stack(data.root / "imagesTs/BRATS_100.nii.gz", patient(100))
    data.invalid("2 problem(s)", rule)
    assert data.names(duplicates="drop") == SPLIT


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"modality": MODALITY | {"1": "t1gd", "2": "T1w"}}, "they are FLAIR, t1gd, T1w, T2w"),
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd"}}, "they are FLAIR, T1w, t1gd"),
        ({"modality": MODALITY | {"3": "CT"}}, "they are FLAIR, T1w, t1gd, CT"),
        ({"name": "BRATS"}, "has no list of channels under 'modality'"),
        ([], "has no list of channels under 'modality'"),
    ],
)
def test_channels_of_the_decathlon(data: Data, content: Any, rule: str) -> None:
    (data.root / "dataset.json").write_text(json.dumps(content))
    data.invalid("dataset.json: ", rule)
    data.invalid("dataset.json: ", rule, decathlon=None)


def test_order_of_channels_without_a_description(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    (data.root / "dataset.json").unlink()
    assert data.names() == SPLIT
    assert "imagesTs: no dataset.json, channels are taken to be flair, t1, t1ce, t2" in caplog.text


def test_excluding_a_name_of_two_cases_excludes_both(data: Data) -> None:
    stack(data.root / "imagesTs/BRATS_100.nii.gz", patient(300))
    assert data.names("BRATS_100") == {part: [n for n in names if n != "BRATS_100"] for part, names in SPLIT.items()}


def test_sequence_to_compare_without_flair(data: Data) -> None:
    """Then the first, T1, which in these volumes is of one value."""
    data.invalid("4 problem(s)", "case BRATS_200: ", "shows no brain", sequences=("t1", "t2"))


def test_sequence_that_the_decathlon_lacks(data: Data) -> None:
    data.invalid("4D volumes hold flair, t1, t1ce, t2, not dwi", sequences=("flair", "dwi"))


@pytest.mark.parametrize("shape", [(40, 48, 36), (40, 48, 36, 3), (40, 48, 36, 5)])
def test_shape_of_a_stack(data: Data, shape: tuple[int, ...]) -> None:
    for path in (data.root / "imagesTr/BRATS_101.nii.gz", data.root / "imagesTs/BRATS_201.nii.gz"):
        write(path, np.ones(shape, np.int16))
    text = data.invalid("2 problem(s)", f"its shape must be (H, W, D, 4), it is {shape}")
    assert "case BRATS_101: " in text
    assert "case BRATS_201: " in text


def test_stack_where_a_sequence_should_be(data: Data) -> None:
    stack(data.root / "labelled/HGG/B0/B0_flair.nii.gz", patient(0))
    data.invalid("1 problem(s)", "case B0", "its shape must be (H, W, D), it is (40, 48, 36, 4)")


def test_missing_files_at_once(data: Data) -> None:
    for file in ("labelled/HGG/B0/B0_seg.nii.gz", "labelled/LGG/B5/B5_t1ce.nii.gz", "labelsTr/BRATS_101.nii.gz"):
        (data.root / file).unlink()
    text = data.invalid("3 problem(s)", "B0_seg.nii.gz: label is missing", "B5_t1ce.nii.gz: t1ce is missing")
    assert f"case BRATS_101: {data.root / 'labelsTr/BRATS_101.nii.gz'}: label is missing" in text


def test_label_without_an_image(data: Data) -> None:
    (data.root / "imagesTr/BRATS_101.nii.gz").unlink()
    data.invalid("labelsTr/BRATS_101.nii.gz: has no image in imagesTr")
    data.invalid("imagesTr: holds no volume", decathlon=str(data.root / "labelled"))


@pytest.mark.parametrize("options", [{"duplicates": "keep"}, {"validation": 0}, {"validation": 1}])
def test_option_that_does_not_exist(data: Data, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="duplicates must be refuse or drop, validation between 0 and 1"):
        data.make(**options)


@pytest.mark.gate
def test_command(data: Data) -> None:
    """From the folder of the bundle; a mistyped option is rejected before anything is read."""
    command = [sys.executable, "-m", "lachinov_distillation.make_datalist", str(data.root / "list.json")]
    command += [
        "--labelled",
        str(data.root / "labelled"),
        "--sequences",
        "flair,t1",
        "--validation",
        "0.34",
        "--seed",
        str(SEED),
    ]
    folder = REPO / "bundles/lachinov_distillation_brats_mri"
    mistyped = subprocess.run([*command, "--duplicate", "drop"], cwd=folder, capture_output=True, text=True)
    assert mistyped.returncode == 2
    assert "unrecognized arguments: --duplicate drop" in mistyped.stderr
    assert not (data.root / "list.json").exists()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    content = json.loads((data.root / "list.json").read_text())
    assert content["validation"][0]["image"] == "labelled/HGG/B2/B2_flair.nii.gz"
