"""Data sets that describe themselves: what is read of them by every bundle, and what is refused with both readings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cooperative_training.data import find_images, read_split
from ensemble_kd.data import read_split as read_kits
from hadnet.shared.data import find_scans, sequence_files
from hadnet.shared.data import read_split as read_brats
from tools.shared.datasets import described, root_of_list
from tools.shared.descriptions import label_values
from tools.shared.lists import read_split_file
from vnet_atrial.data import find_images as find_atria
from vnet_atrial.data import read_split as read_atria

CASES = ["la_003", "la_004", "la_005", "la_007", "la_010"]
HEART = {"RV": 1, "MYO": 2, "LV": 3}
SEQUENCES = ["flair", "t1ce", "t1", "t2"]
REFUSED = r"problem\(s\) in the input"  # an `InputError` of any bundle


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def raw(root: Path, channels: list[str], labels: dict[str, Any], cases: list[str] = CASES) -> Path:
    """A folder as nnU-Net has it."""
    for case in cases:
        touch(root, *(f"imagesTr/{case}_{number:04d}.nii.gz" for number in range(len(channels))))
        touch(root, f"labelsTr/{case}.nii.gz")
    touch(root, *(f"imagesTs/test_001_{number:04d}.nii.gz" for number in range(len(channels))))
    names = {str(number): name for number, name in enumerate(channels)}
    return describe(
        root, channel_names=names, labels={"background": 0, **labels}, numTraining=len(cases), file_ending=".nii.gz"
    )


def decathlon(root: Path, channels: list[str], labels: dict[str, str], cases: list[str] = CASES) -> Path:
    """A folder as the Decathlon has it."""
    touch(root, *(f"{folder}/{case}.nii.gz" for folder in ("imagesTr", "labelsTr") for case in cases))
    touch(root, "imagesTs/test_001.nii.gz")
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases]
    names = {str(number): name for number, name in enumerate(channels)}
    return describe(
        root,
        modality=names,
        labels={"0": "background", **labels},
        training=training,
        test=["./imagesTs/test_001.nii.gz"],
    )


def names(cases: list[dict[str, Any]]) -> list[str]:
    return sorted(case["case"] for case in cases)


@pytest.mark.parametrize("make", [raw, decathlon])
def test_every_bundle_reads_both_layouts_and_says_so(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    numbers = {"left atrium": 1} if make is raw else {"1": "left atrium"}
    root = make(tmp_path / "heart", ["MRI"], numbers)
    split = read_atria(root)
    assert [len(split[part]) for part in ("training", "validation")] == [4, 1]
    assert names(split["training"] + split["validation"]) == CASES
    case = split["training"][0]
    ending = "_0000.nii.gz" if make is raw else ".nii.gz"
    assert case == {
        "case": case["case"],
        "image": str(root / "imagesTr" / f"{case['case']}{ending}"),
        "label": str(root / "labelsTr" / f"{case['case']}.nii.gz"),
    }
    assert names(find_atria(root)) == [*CASES, "test_001"]
    assert names(find_atria(root / "imagesTs")) == ["test_001"]
    kind = "a raw folder of nnU-Net" if make is raw else "a list as of the Decathlon"
    assert f"heart: read as {kind}, 5 training, 1 test; channels MRI" in caplog.text
    assert f"imagesTs: read as {kind}, 1 test" in caplog.text


def test_channels_are_found_by_name(tmp_path: Path) -> None:
    root = raw(
        tmp_path, ["T1w", "T1-Gd", "T2w", "T2-FLAIR"], {"edema": 1, "non-enhancing tumor": 2, "enhancing tumor": 3}
    )
    case = read_brats(root, sequences=["flair", "t1ce"])["training"][0]
    found = sequence_files(case["image"], SEQUENCES)
    assert found is not None
    assert {name: path.name[-11:-7] for name, path in found.items()} == {
        "t1": "0000",
        "t1ce": "0001",
        "t2": "0002",
        "flair": "0003",
    }
    assert case["label_values"] == [0, 2, 1, 3]
    assert names(find_scans(root / "imagesTs", sequences=SEQUENCES)) == ["test_001"]
    assert find_scans(case["image"], sequences=SEQUENCES)[0]["case"] == case["case"]
    with pytest.raises(ValueError, match="the channels are T1w, T1-Gd, T2w, T2-FLAIR, and there must be one adc"):
        read_brats(root, sequences=["adc", "t1"])
    with pytest.raises(ValueError, match="must have one channel, these have 4"):
        read_atria(root)
    (root / "imagesTr" / f"{CASES[2]}_0003.nii.gz").unlink()
    with pytest.raises(ValueError, match=rf"case {CASES[2]}: .* must have 4 channels .*, has 0000, 0001, 0002"):
        read_brats(root, sequences=["t1"])


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"background": 0, "RV": 1, "MLV": 2, "LVC": 3}, None),
        ({"0": "background", "1": "Left_Ventricle", "2": "myocardium", "3": "right ventricular cavity"}, [0, 3, 2, 1]),
        ({"background": 0, "LV": 4, "MYO": 2, "RV": 1}, [0, 1, 2, -1, 3]),
    ],
)
def test_labels_by_name(labels: Any, wanted: list[int] | None, tmp_path: Path) -> None:
    from cooperative_training.layouts import SYNONYMS

    assert label_values({"labels": labels}, tmp_path, classes=HEART, synonyms=SYNONYMS) == wanted


def test_regions_name_their_innermost_values(tmp_path: Path) -> None:
    """nnU-Net's BraTS: each region is called by all of its values."""
    from hadnet.shared.naming import CLASSES

    regions = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    classes = {"NCR": 1, "ED": 2, "ET": 3}
    assert label_values({"labels": regions}, tmp_path, classes=classes, synonyms=CLASSES) == [0, 2, 1, 3]
    plain = {"background": 0, "whole tumor": 1, "tumor core": 2, "enhancing tumor": 3}
    with pytest.raises(
        ValueError, match="it lists 1 whole tumor, 2 tumor core, 3 enhancing tumor; unknown: whole tumor"
    ):
        label_values({"labels": plain}, tmp_path, classes=classes, synonyms=CLASSES)


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (
            {"background": 0, "RV": 1, "MYO": 2},
            "labels must be RV, MYO, LV, each once; it lists 1 RV, 2 MYO; missing: LV",
        ),
        ({"background": 0, "RV": 1, "MYO": 2, "LV": 3, "aorta": 4}, "3 LV, 4 aorta; unknown: aorta"),
        ({"background": 0, "RV": 1, "MYO": 2, "LV": 3, "LVC": 4}, "each once"),
        ({"RV": 0, "MYO": 1, "LV": 2}, "has labels that are neither"),
        ({"background": 0, "RV": 1.5, "MYO": 2, "LV": 3}, "has labels that are neither"),
        ({"background": 0, "RV": 1, "MYO": 1, "LV": 3}, "label MYO has the values"),
        (["RV"], "has labels that are neither"),
    ],
)
def test_other_labels_are_refused_by_name(labels: Any, rule: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rule):
        label_values({"labels": labels}, tmp_path, classes=HEART, synonyms={"LV": ["LVC"]})


def test_both_readings_are_named(tmp_path: Path) -> None:
    root = raw(tmp_path / "a", ["CT"], {"kidney": 1, "tumor": 2})
    touch(root, "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz")
    with pytest.raises(ValueError, match=r"ambiguous: a data set of nnU-Net, .*, or 1 folders of cases \(case_00000\)"):
        read_kits(root, label_order=["kidney", "tumour"])
    both = decathlon(tmp_path / "b", ["CT"], {"1": "kidney", "2": "tumour"})
    content = json.loads((both / "dataset.json").read_text())
    describe(both, **content, channel_names={"0": "CT"})
    with pytest.raises(
        ValueError, match=r"'channel_names' and 0 files <case>_0000 in imagesTr, or the Decathlon's list"
    ):
        read_kits(both)
    two = raw(tmp_path / "c", ["T1", "T2"], {"kidney": 1, "tumor": 2})
    content = json.loads((two / "dataset.json").read_text())
    describe(two, **content, modality={"0": "T2", "1": "T1"})
    with pytest.raises(ValueError, match=r"channels .*'T1'.* by nnU-Net's 'channel_names', or .*'T2'.* by 'modality'"):
        read_kits(two)


def test_what_is_incomplete_is_refused(tmp_path: Path) -> None:
    root = raw(tmp_path / "a", ["MRI"], {"left atrium": 1})
    touch(root, "labelsTr/la_099.nii.gz")
    with pytest.raises(ValueError, match=r"case la_099: .*the label has no image"):
        read_atria(root)
    (root / "labelsTr/la_099.nii.gz").unlink()
    touch(root, "imagesTr/plain.nii.gz")
    with pytest.raises(ValueError, match=r"called <case>_0000, <case>_0001 \.\.\.; these are not: plain"):
        read_atria(root)
    (root / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"holds imagesTr, but no dataset\.json"):
        read_atria(root)
    describe(root, name="heart")
    with pytest.raises(ValueError, match="describes neither"):
        read_atria(root)


def test_folds_of_nnu_net(tmp_path: Path) -> None:
    root = raw(
        tmp_path, ["cine MRI"], {"RV": 1, "MLV": 2, "LVC": 3}, ["patient001_ED", "patient001_ES", "patient002_ED"]
    )
    folds = [
        {"train": ["patient002_ED"], "val": ["patient001_ED", "patient001_ES"]},
        {"train": ["patient001_ED", "patient002_ED"], "val": ["patient001_ES"]},
    ]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    split = read_split(root, tmp_path / "splits_final.json")
    assert names(split["validation"]) == ["patient001_ED", "patient001_ES"]
    assert [(case["patient"], case["frame"]) for case in split["training"]] == [("002", "ED")]
    with pytest.raises(ValueError, match="is in validation, another scan of the patient"):
        read_split(root, f"{tmp_path}/splits_final.json:1")
    with pytest.raises(ValueError, match="has no fold 2, it has 2"):
        read_split_file(f"{tmp_path}/splits_final.json:2")
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["nobody"], "val": ["patient001_ED"]}]))
    with pytest.raises(ValueError, match=r"case nobody: .*there is no such case"):
        read_split(root, tmp_path / "splits_final.json")
    assert names(find_images(root)) == ["patient001_ED", "patient001_ES", "patient002_ED", "test_001"]


def test_a_list_stands_for_its_folder(tmp_path: Path) -> None:
    makers: list[tuple[Any, Any]] = [(raw, {"left atrium": 1}), (decathlon, {"1": "left atrium"})]
    for make, number in makers:
        root = make(tmp_path / make.__name__, ["MRI"], number)
        assert read_atria(root / "dataset.json") == read_atria(root)
        assert root_of_list(root / "dataset.json") == root


def test_anything_else_is_left_to_the_bundle(tmp_path: Path) -> None:
    touch(tmp_path, "case/lgemri.nrrd")
    assert described(tmp_path, is_case=Path.is_dir) is None
    describe(tmp_path, Name="of another program")
    assert described(tmp_path, is_case=Path.is_dir) is None


def test_volume_with_fewer_channels_than_its_data_set_is_refused(tmp_path: Path) -> None:
    """Its three channels could be any three of the four."""
    from hadnet.shared.naming import stack_of
    from hadnet.shared.sequences import channels_of

    root = decathlon(
        tmp_path, ["FLAIR", "T1w", "t1gd", "T2w"], {"1": "edema", "2": "necrosis", "3": "enhancing tumour"}
    )
    stack, complete = stack_of(root / "imagesTr/la_003.nii.gz", SEQUENCES)
    assert (stack, complete) == (["flair", "t1", "t1ce", "t2"], True)
    assert channels_of(["t1ce", "flair"], stack=stack, count=4, complete=True) == [2, 0]
    with pytest.raises(ValueError, match=r"must have 4 \(flair, t1, t1ce, t2\) channels, has 2"):
        channels_of(["t1ce", "flair"], stack=stack, count=2, complete=True)
