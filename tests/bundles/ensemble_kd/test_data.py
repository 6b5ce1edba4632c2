"""Where ensemble_kd_kits_ct finds its scans, and what it rejects: folders of KiTS and ACDC, datalists, volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from monai.transforms import Identityd

from ensemble_kd.checks import check_scans
from ensemble_kd.data import evaluation_cases, find_scans, read_split, root_folder, soft_label_file, with_soft_labels
from ensemble_kd.shared.validation import InputError

KITS = [f"case_{number:05d}" for number in range(10)]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def kits(root: Path, cases: Sequence[str] = KITS, suffix: str = ".nii.gz") -> Path:
    return touch(root, *(f"{case}/{stem}{suffix}" for case in cases for stem in ("imaging", "segmentation")))


def acdc(root: Path, frames: Mapping[str, Mapping[str, int]]) -> Path:
    for patient, numbers in frames.items():
        stems = [f"{patient}/{patient}_frame{number:02d}" for number in numbers.values()]
        touch(root, *(f"{stem}{ending}.nii.gz" for stem in stems for ending in ("", "_gt")), f"{patient}/Info.cfg")
        lines = [f"{name}: {number}" for name, number in numbers.items()] + ["Group: DCM", "Height: 184.0"]
        (root / patient / "Info.cfg").write_text("\r\n".join(lines))
    return root


def save(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def names(cases: Mapping[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    return {split: [case["case"] for case in listed] for split, listed in cases.items()}


def all_names(cases: Mapping[str, list[dict[str, str]]]) -> list[str]:
    return sorted(name for listed in names(cases).values() for name in listed)


def test_draw_of_kits_is_a_partition_that_the_seed_repeats(tmp_path: Path) -> None:
    found = read_split(kits(tmp_path))
    assert [len(found[split]) for split in ("training", "validation", "test")] == [8, 2, 0]
    assert all_names(found) == KITS
    assert found == read_split(tmp_path) != read_split(tmp_path, seed=124)
    assert len(read_split(tmp_path, validation=0.5)["validation"]) == 5
    case = found["training"][0]
    folder = tmp_path / case["case"]
    assert case == {"case": folder.name} | {
        key: str(folder / f"{stem}.nii.gz") for key, stem in (("image", "imaging"), ("label", "segmentation"))
    }


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
def test_other_formats(suffix: str, tmp_path: Path) -> None:
    assert find_scans(kits(tmp_path, KITS[:1], suffix)) == [
        {"case": KITS[0], "image": str(tmp_path / KITS[0] / f"imaging{suffix}")}
    ]


def test_split_file_rules(tmp_path: Path) -> None:
    lists = {"training": KITS[3:5], "validation": KITS[:1], "test": KITS[8:]}
    split = save(tmp_path / "split.json", lists)
    assert names(read_split(kits(tmp_path / "data"), split)) == lists
    assert [case["case"] for case in find_scans(tmp_path / "data", split_file=split)] == KITS[3:5]
    save(split, {"training": KITS[:2], "validation": ["nobody"]})
    with pytest.raises(InputError, match=r"case nobody: .*data: the split file names it, there is no such case"):
        read_split(tmp_path / "data", split)
    save(split, {"training": KITS[:2], "validation": KITS[1:2]})
    with pytest.raises(InputError, match=r"case case_00001: .*split\.json: is listed twice"):
        read_split(tmp_path / "data", split)


@pytest.mark.parametrize(
    "content", ["[]", {"validation": []}, {"training": [], "validation": [], "test": None}, {"training": "a"}]
)
def test_file_without_lists_is_refused(content: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "list.json", content)
    with pytest.raises(
        InputError, match=r"list\.json: must hold lists of case names under 'training' and 'validation'"
    ):
        read_split(kits(tmp_path), path)
    for call in (read_split, find_scans):
        with pytest.raises(InputError, match=r"list\.json: must hold a list of cases under 'training' and, if wanted,"):
            call(path)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "list.json", "{")
    calls = (lambda: read_split(kits(tmp_path), path), lambda: read_split(path), lambda: find_scans(path))
    for call in calls:
        with pytest.raises(InputError, match=r"list\.json: is no valid JSON \("):
            call()
    path.unlink()
    for index, kind in enumerate(("split file", "datalist", "datalist")):
        with pytest.raises(InputError, match=rf"list\.json: {kind} does not exist"):
            calls[index]()
    save(path, {"training": KITS[:2]})
    with pytest.raises(InputError, match="must hold lists of case names under 'training' and 'validation'"):
        calls[0]()


def test_missing_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    for call in (read_split, find_scans):
        with pytest.raises(InputError, match="nowhere: dataset_dir does not exist"):
            call(tmp_path / "nowhere")
    with pytest.raises(InputError, match="needs cases of two patients or more to train, holds 1"):
        read_split(kits(tmp_path / "one", KITS[:1]))
    touch(kits(tmp_path / "some", KITS[:2]), "notes/readme.txt")
    with pytest.raises(InputError, match=r"case notes: .*holds neither imaging and segmentation nor an Info\.cfg"):
        read_split(tmp_path / "some")
    with pytest.raises(InputError, match="holds neither cases nor a volume"):
        find_scans(touch(tmp_path / "text", "a.txt", "b/c.txt"))


def test_case_that_lacks_a_file_is_listed_and_the_check_names_it(tmp_path: Path) -> None:
    kits(tmp_path, KITS[:2])
    (tmp_path / KITS[0] / "imaging.nii.gz").unlink()
    (tmp_path / KITS[1] / "segmentation.nii.gz").unlink()
    found = [case for cases in read_split(tmp_path).values() for case in cases]
    with pytest.raises(InputError) as caught:
        check_scans([found], spatial=Identityd("image"), label_groups=[[0], [1]])
    assert f"{KITS[0]}/imaging.nii.gz: image is missing" in str(caught.value)
    assert f"{KITS[1]}/segmentation.nii.gz: label is missing" in str(caught.value)
    assert [case["case"] for case in find_scans(tmp_path)] == KITS[:2]


def test_frames_of_acdc(tmp_path: Path) -> None:
    """Numbers have two digits in names; in patient 90 the end of diastole is not the first frame."""
    acdc(tmp_path, {"patient001": {"ED": 1, "ES": 12}, "patient090": {"ED": 11, "ES": 3}})
    first, second = find_scans(tmp_path)
    assert first == {"case": "patient001_ED", "image": str(tmp_path / "patient001/patient001_frame01.nii.gz")}
    assert second == {"case": "patient090_ED", "image": str(tmp_path / "patient090/patient090_frame11.nii.gz")}
    found = read_split(tmp_path, frames=["ED", "ES"])
    pairs = [{"patient001_ED", "patient001_ES"}, {"patient090_ED", "patient090_ES"}]
    assert sorted(map(set, names(found).values()), key=len)[1:] in (pairs, pairs[::-1])  # no patient in two lists
    late = next(case for cases in found.values() for case in cases if case["case"] == "patient090_ES")
    assert late["label"] == str(tmp_path / "patient090/patient090_frame03_gt.nii.gz")
    with pytest.raises(InputError, match=r"case patient001: .*nor an Info\.cfg with the frames MID"):
        read_split(tmp_path, frames=["MID"])


def record(name: str, **more: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


def test_datalist_of_the_decathlon(tmp_path: Path) -> None:
    """Its test scans are paths without labels: they are segmented, but nothing is learnt from them."""
    training = [record(f"liver_{number}") for number in range(5)]
    path = save(tmp_path / "dataset.json", {"training": training, "test": ["./imagesTs/liver_9.nii.gz"]})
    found = read_split(path)
    assert [len(cases) for cases in found.values()] == [4, 1, 0]
    assert all_names(found) == [f"liver_{number}" for number in range(5)]
    assert found["training"][0]["image"].startswith(f"{tmp_path}/imagesTr/liver_")
    scans = find_scans(path)
    assert [scan["case"] for scan in scans] == [*(f"liver_{number}" for number in range(5)), "liver_9"]
    assert scans[-1]["image"] == str(tmp_path / "imagesTs/liver_9.nii.gz")


def test_datalist_that_tells_its_split(tmp_path: Path) -> None:
    lists = {"training": [record("a"), record("b")], "validation": [record("c", case="own")], "test": [record("d")]}
    path = save(tmp_path / "dataset.json", lists)
    found = read_split(path)
    assert names(found) == {"training": ["a", "b"], "validation": ["own"], "test": ["d"]}
    assert found["validation"][0]["image"] == str(tmp_path / "imagesTr/c.nii.gz")
    split = save(tmp_path / "split.json", {"training": ["own", "d"], "validation": ["a"]})
    assert names(read_split(path, split)) == {"training": ["own", "d"], "validation": ["a"], "test": []}


@pytest.mark.parametrize(
    "entry", ["a.nii.gz", {"image": "a.nii.gz"}, {"label": "a.nii.gz"}, {"image": "", "label": ""}]
)
def test_record_without_image_or_label_is_refused(entry: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "dataset.json", {"training": [record("b"), entry]})
    with pytest.raises(InputError, match="every record in training must have an image and a label"):
        read_split(path)


def test_scans_of_a_datalist_need_no_label(tmp_path: Path) -> None:
    path = save(tmp_path / "dataset.json", {"training": [{"image": "/data/a.nii.gz"}]})
    assert find_scans(path) == [{"case": "a", "image": "/data/a.nii.gz"}]
    save(path, {"training": [{"label": "a.nii.gz"}]})
    with pytest.raises(InputError, match="every record in training must have an image"):
        find_scans(path)


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    """One would take the place of the other's results."""
    twice = [{"image": f"{folder}/imaging.nii", "label": f"{folder}/segmentation.nii"} for folder in "ab"]
    path = save(tmp_path / "dataset.json", {"training": twice})
    for call in (read_split, find_scans):
        with pytest.raises(InputError, match=r"case imaging: .*dataset\.json: two cases have this name"):
            call(path)
    with pytest.raises(InputError, match=r"case a: .*flat: is ambiguous: a\.nii\.gz or a\.nrrd\?"):
        find_scans(touch(tmp_path / "flat", "a.nii.gz", "a.nrrd", "b.nii"))


def test_single_volumes_and_flat_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.v1.nrrd", "notes.txt", "._b.nii.gz", "._a.v1.nrrd")
    a, b = (str(tmp_path / name) for name in ("a.v1.nrrd", "b.nii.gz"))
    assert find_scans(tmp_path) == [{"case": "a.v1", "image": a}, {"case": "b", "image": b}]
    assert find_scans(b) == [{"case": "b", "image": b}]
    assert root_folder(b) == root_folder(tmp_path) == str(tmp_path)


def test_folder_of_one_case_and_what_macos_leaves(tmp_path: Path) -> None:
    touch(
        kits(tmp_path, KITS[:2]),
        "._case_00000",
        *(f"{KITS[0]}/._{stem}.nii.gz" for stem in ("imaging", "segmentation")),
    )
    touch(tmp_path, ".hidden/imaging.nii.gz")
    assert [case["case"] for case in find_scans(tmp_path)] == KITS[:2]
    assert all_names(read_split(tmp_path)) == KITS[:2]
    assert find_scans(tmp_path / KITS[0]) == [{"case": KITS[0], "image": str(tmp_path / KITS[0] / "imaging.nii.gz")}]


def test_cases_to_evaluate() -> None:
    one, two, three = ([{"case": name}] for name in "abc")
    assert evaluation_cases({"training": one, "validation": two, "test": three}) == three
    assert evaluation_cases({"training": one, "validation": two, "test": []}) == two
    assert evaluation_cases({"training": one, "validation": two, "test": three}, "training") == one
    with pytest.raises(InputError, match="subset: must be one of training, validation, test, got all"):
        evaluation_cases({"training": one, "validation": two, "test": three}, "all")


def test_soft_labels_join_the_training_cases(tmp_path: Path) -> None:
    lists = {
        split: [{"case": name, "image": name}] for split, name in zip(("training", "validation"), "ab", strict=True)
    }
    for nothing in (False, None, ""):
        assert with_soft_labels(lists, nothing) == lists
    with pytest.raises(InputError, match=r"case a: .*/a/a_soft\.nii\.gz: soft labels are missing"):
        with_soft_labels(lists, tmp_path)
    touch(tmp_path, "a/a_soft.nii.gz")
    found = with_soft_labels(lists, tmp_path)
    assert found["training"] == [lists["training"][0] | {"soft": str(soft_label_file(tmp_path, "a"))}]
    assert found["validation"] == lists["validation"]
    assert "soft" not in lists["training"][0]


def test_results_of_a_datalist_stay_below_one_folder(tmp_path: Path) -> None:
    """Scans that lie elsewhere than the datalist do not send their masks out of the results' folder."""
    images = [tmp_path / f"scans/{part}/a{index}.nii.gz" for index, part in enumerate("xy")]
    datalist = tmp_path / "lists/one/datalist.json"
    datalist.parent.mkdir(parents=True)
    datalist.write_text(json.dumps({"training": [{"image": str(path)} for path in images]}))
    assert root_folder(datalist) == str(tmp_path / "scans")
    assert root_folder(images[0]) == str(images[0].parent)
