"""Datalists of the Lachinov bundle: what is read, what is written, and which label a training case gets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from lachinov_distillation.checks import check_scans
from lachinov_distillation.datalist import read_datalist, unlabelled_cases, with_pseudo_labels, write_datalist
from lachinov_distillation.labels import LoadLabeld, ToRegionsd
from lachinov_distillation.shared.validation import InputError
from tests.bundles.hadnet.files import SHAPE, label, scan, write, write_case

SEQUENCES = ("t1", "t1ce", "t2", "flair")
ORDER = ("NCR", "ED", "ET", "ET")


def record(name: str, **more: Any) -> dict[str, Any]:
    return {"case": name, "image": f"{name}/{name}_t1.nii.gz", "label": f"{name}/{name}_seg.nii.gz", **more}


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_written_list_is_read_again_wherever_its_folder_is_moved(tmp_path: Path) -> None:
    inside, outside = str(tmp_path / "one/a_label.nii.gz"), "/elsewhere/a_t1.nii.gz"
    cases = [{"case": "a", "image": outside, "label": inside, "label_source": "ensemble", "stack": ["t1"]}]
    write_datalist(tmp_path / "one/list.json", {"training": cases})
    assert json.loads((tmp_path / "one/list.json").read_text())["training"][0]["label"] == "a_label.nii.gz"
    assert read_datalist(tmp_path / "one/list.json")["training"] == cases
    (tmp_path / "one").rename(tmp_path / "two")
    (moved,) = read_datalist(tmp_path / "two/list.json")["training"]
    assert moved == cases[0] | {"label": str(tmp_path / "two/a_label.nii.gz")}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("{", "is no valid JSON"),
        ("[]", "must hold lists of cases under training, validation, test, unlabelled"),
        ('{"cases": []}', "must hold lists of cases under"),
        ('{"training": [{"case": "a", "image": "x"}]}', "case a: .*a case in training must have case, image, label"),
        ('{"unlabelled": [{"image": "x"}]}', "a case in unlabelled must have case, image"),
        ('{"training": ["a"]}', "a case in training must have case, image, label"),
    ],
)
def test_damaged_list_is_refused(content: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=rule):
        read_datalist(tmp_path / "list.json")


def test_what_a_case_does_not_have_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "list.json", {"training": [record("a", stack=None, soft=None, label_order=["ET"])]})
    (found,) = read_datalist(path)["training"]
    assert found.keys() == {"case", "image", "label", "label_order"}


def test_case_in_two_lists_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "list.json", {"training": [record("a")], "unlabelled": [record("a"), record("b")]})
    with pytest.raises(InputError, match=r"case a: .*list\.json: two cases have this name"):
        read_datalist(path)
    with pytest.raises(InputError, match=r"there is no such datalist"):
        read_datalist(tmp_path / "other.json")


def test_scans_to_annotate_come_from_a_folder_or_a_list(tmp_path: Path) -> None:
    write_case(tmp_path / "data/a")
    (found,) = unlabelled_cases(tmp_path / "data", sequences=SEQUENCES)
    assert found["case"] == "a"
    path = save(tmp_path / "list.json", {"unlabelled": [{"case": "b", "image": "b.nii.gz", "stack": ["flair"]}]})
    assert unlabelled_cases(path, sequences=SEQUENCES) == [
        {"case": "b", "image": str(tmp_path / "b.nii.gz"), "stack": ["flair"]}
    ]
    with pytest.raises(InputError, match="holds no unlabelled case"):
        unlabelled_cases(save(tmp_path / "list.json", {"training": [record("a")]}), sequences=SEQUENCES)


def lists() -> dict[str, list[dict[str, Any]]]:
    return {"training": [record("a"), record("b")], "validation": [record("v")], "test": []}


def test_pseudo_labels_join_the_training_cases_and_give_way_to_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotated = [record(name, label_source="ensemble", soft=f"{name}_soft.nii.gz") for name in ("b", "u")]
    path = save(tmp_path / "pseudo.json", {"training": annotated})
    with caplog.at_level(logging.WARNING):
        found = with_pseudo_labels(lists(), path)
    assert "1 pseudo-labels give way to labels of the same cases: b" in caplog.text
    assert [(case["case"], case["label_source"]) for case in found["training"]] == [
        ("a", "manual"),
        ("b", "manual"),
        ("u", "ensemble"),
    ]
    assert found["validation"] == lists()["validation"]
    assert not any("soft" in case for case in found["training"])
    soft = with_pseudo_labels(lists(), path, soft=True)["training"]
    assert [case.get("soft") for case in soft] == [None, None, str(tmp_path / "u_soft.nii.gz")]
    assert with_pseudo_labels(lists(), False)["training"] == [record(n) | {"label_source": "manual"} for n in "ab"]


def test_pseudo_label_of_a_held_out_case_is_refused_unless_excluded(tmp_path: Path) -> None:
    path = save(tmp_path / "pseudo.json", {"training": [record("v"), record("u")]})
    with pytest.raises(InputError, match=r"case v: .*is a case of validation too, training on it would leak"):
        with_pseudo_labels(lists(), path)
    with pytest.raises(InputError, match="case nobody: exclude: there is no such case"):
        with_pseudo_labels(lists(), path, exclude=["v", "nobody"])
    found = with_pseudo_labels(lists(), path, exclude=["v", "a"])
    assert {split: [case["case"] for case in cases] for split, cases in found.items()} == {
        "training": ["b", "u"],
        "validation": [],
        "test": [],
    }


def test_soft_labels_must_be_there(tmp_path: Path) -> None:
    path = save(tmp_path / "pseudo.json", {"training": [record("u")]})
    with pytest.raises(InputError, match=r"case u: .*has no region probabilities: annotate with `soft: true`"):
        with_pseudo_labels(lists(), path, soft=True)


def test_labels_of_two_conventions_become_the_same_regions(tmp_path: Path) -> None:
    brats, decathlon = (
        str(write(tmp_path / f"{name}.nii.gz", label(*v))) for name, v in (("b", (1, 2, 4)), ("d", (2, 1, 3)))
    )
    load = LoadLabeld("label", label_order=ORDER)
    found = [load({"label": brats}), load({"label": decathlon, "label_order": ["ED", "NCR", "ET"]})]
    assert torch.equal(found[0]["label"].as_tensor(), found[1]["label"].as_tensor())
    assert found[0]["label"][0, 3, 3, 3:6].tolist() == [1, 2, 4]
    regions = ToRegionsd("label")(found[0])["label"]
    assert regions.dtype == torch.uint8
    assert regions[:, 3, 3, 3:6].tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 1]]  # WT, TC, ET of NCR, ED, ET


def test_soft_label_is_what_the_ensemble_wrote(tmp_path: Path) -> None:
    soft = np.zeros((*SHAPE, 3), np.uint8)
    soft[3, 3, 3] = (255, 51, 0)
    path = write(tmp_path / "soft.nii.gz", soft)
    item = ToRegionsd("label")(LoadLabeld("label", label_order=ORDER)({"soft": str(path), "label": "nowhere"}))
    assert item["label"].dtype == torch.float32
    assert item["label"][:, 3, 3, 3].tolist() == pytest.approx([1, 0.2, 0])
    assert item["label"].shape == (3, *SHAPE)


def check(cases: list[dict[str, Any]]) -> None:
    check_scans([cases], sequences=SEQUENCES, stack=SEQUENCES, label_order=ORDER)


def files(folder: Path, **volumes: np.ndarray) -> dict[str, Any]:
    write_case(folder, volumes=volumes)
    name = folder.name
    return {"case": name, "image": str(folder / f"{name}_t1.nii.gz"), "label": str(folder / f"{name}_seg.nii.gz")}


def test_good_cases_of_all_kinds_pass(tmp_path: Path) -> None:
    soft = write(tmp_path / "soft.nii.gz", np.zeros((*SHAPE, 3), np.uint8))
    stacked = write(tmp_path / "stack.nii.gz", np.stack([scan(seed) for seed in range(4)], -1))
    marked = str(write(tmp_path / "stack_label.nii.gz", label(1, 2, 3)))
    first = files(tmp_path / "a")
    check(
        [
            first,
            files(tmp_path / "empty", label=np.zeros(SHAPE, np.uint8)),
            {**first, "soft": str(soft), "label": "nowhere"},
            {"case": "d", "image": str(stacked), "label": marked, "label_order": ["ED", "NCR", "ET"], "stack": None},
        ]
    )


def test_sequence_without_positive_voxels_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"case a: .*a_t2\.nii\.gz: t2 has no positive voxel"):
        check([files(tmp_path / "a", t2=np.minimum(-scan(2), 0))])
    stacked = np.stack([scan(0), scan(1), scan(2), 0 * scan(3)], -1)
    case = files(tmp_path / "b") | {"image": str(write(tmp_path / "b.nii.gz", stacked))}
    with pytest.raises(InputError, match=r"case b: .*b\.nii\.gz: flair has no positive voxel"):
        check([case])


def test_volume_with_other_channels_is_named(tmp_path: Path) -> None:
    case = files(tmp_path / "b") | {"image": str(write(tmp_path / "b.nii.gz", np.stack([scan(0), scan(1)], -1)))}
    with pytest.raises(InputError, match=r"case b: .*b\.nii\.gz: must have 4 \(t1, t1ce, t2, flair\) .* has 2"):
        check([case])


def test_soft_labels_with_other_channels_or_another_grid_are_named(tmp_path: Path) -> None:
    case = files(tmp_path / "a")
    four = write(tmp_path / "four.nii.gz", np.zeros((*SHAPE, 4), np.uint8))
    with pytest.raises(InputError, match=r"four\.nii\.gz: soft labels must have 3 channels \(WT, TC, ET\), have 4"):
        check([case | {"soft": str(four)}])
    moved = tmp_path / "moved.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 3), np.uint8), np.eye(4)), moved)
    with pytest.raises(InputError, match=r"moved\.nii\.gz: affine differs"):
        check([case | {"soft": str(moved)}])


def test_values_outside_the_conventions_of_all_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"case a: .*a_seg\.nii\.gz: label values 3 and 4 must not be in one file"):
        check([files(tmp_path / "a", label=label(3, 4))])


def test_sources_may_have_conventions_of_their_own(tmp_path: Path) -> None:
    """Pseudo-labels have 4 where the labels of 2023 have 3; a case's own order has no value beyond it."""
    manual, annotated = files(tmp_path / "a", label=label(1, 3)), files(tmp_path / "b", label=label(1, 4))
    check([manual, annotated | {"label_source": "ensemble"}])
    with pytest.raises(InputError, match=r"case b: .*has 4 for enhancing tumour, and 3 has case a"):
        check([manual, annotated])
    with pytest.raises(InputError, match=r"case b: .*label values must be among \[0, 1, 2, 3\], found 4"):
        check([manual, annotated | {"label_order": ["ED", "NCR", "ET"]}])
