"""Which files are scans: what every bundle finds in a folder, and what it rejects; nothing is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from tests.conftest import NAMES, data_module, each_bundle, recipe, workflows
from tests.conftest import config_files as files_of
from vnet_atrial.shared import scans

Found = list[dict[str, str]]
FINDERS = {"vnet_atrial_mri": "find_images", "cooperative_training_acdc_mri": "find_images"}


def find(bundle: str, root: Path) -> Found:
    """The scans that an inference would segment."""
    data = data_module(bundle)
    given: dict[str, Any] = {"sequences": ("t1", "flair")} if hasattr(data, "sequence_files") else {}
    found: Found = getattr(data, FINDERS.get(bundle, "find_scans"))(root, **given)
    return found


def names(bundle: str, root: Path) -> list[str]:
    return [case["case"] for case in find(bundle, root)]


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


FOUND: dict[str, tuple[list[str], list[str]]] = {
    "names with dots": (
        ["1.2.840.113.nii.gz", "1.2.840.114.nii.gz", "P1.v2.nii"],
        ["1.2.840.113", "1.2.840.114", "P1.v2"],
    ),
    "capital letters": (["P1.NII.GZ", "P2.NII"], ["P1", "P2"]),
    "results and labels beside scans": (
        ["a.nii.gz", "b.nii", *(f"a_{end}.nii.gz" for end in ("seg", "gt", "atrium", "tumour", "unc_core", "seg_seg"))],
        ["a", "b"],
    ),
    "result of a name in capital letters": (["a.NII.GZ", "a.NII_tumour.nii.gz"], ["a"]),
    "what systems leave": (
        ["a.nii", "._a.nii", ".a_seg.nii", "Thumbs.db", "__MACOSX/._b.nii", "@eaDir/b.nii", ".ipynb_checkpoints/b.nii"],
        ["a"],
    ),
    "results in a folder": (["a.nii", "eval/a_seg.nii", "eval/patient001_frame01_seg.nii.gz", "notes.txt"], ["a"]),
}
INVALID: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two formats": (lambda root: touch(root, "a.nii", "a.nii.gz"), r"case a: .*: is ambiguous: a\.nii or a\.nii\.gz\?"),
    "capital letters alone": (
        lambda root: touch(root, "a.nii.gz", "A.NII.GZ", "b.nii"),
        r"case A: .*: is ambiguous: A\.NII\.GZ or a\.nii\.gz\?",
    ),
    "result alone": (
        lambda root: touch(root, "b.nii", "a_atrium.nii"),
        r"case a_atrium: .*a_atrium\.nii: is called as a label map or a result, and its scan is not there",
    ),
    "one file twice": (
        lambda root: link(touch(root, "a.nii") / "b.nii", "a.nii"),
        r"case b: .*b\.nii: is the same file as that of case a",
    ),
    "lost link": (
        lambda root: link(touch(root, "a.nii") / "b.nii", "c.nii"),
        r"case b: .*b\.nii: is a link that leads nowhere",
    ),
    "lost folder": (lambda root: link(touch(root, "a.nii") / "b", "c"), r"case b: .*/b: is a link that leads nowhere"),
    "control character": (
        lambda root: touch(root, "a\nb.nii"),
        r"case 'a\\nb': .*: a case's name must be that of a file",
    ),
}
CASE = {  # image and label of a case, whose folder is C
    "vnet_atrial_mri": ("lgemri.nrrd", "laendo.nrrd"),
    "cooperative_training_acdc_mri": ("ED_img.nii.gz", "ED_seg.nii.gz"),
    "ensemble_kd_kits_ct": ("imaging.nii.gz", "segmentation.nii.gz"),
    "hadnet_brats_mri": ("C_t1.nii.gz", "C_seg.nii.gz"),
    "lachinov_distillation_brats_mri": ("C_t1.nii.gz", "C_seg.nii.gz"),
}


@pytest.mark.parametrize("name", FOUND)
@each_bundle
def test_scans_of_a_folder(bundle: str, name: str, tmp_path: Path) -> None:
    paths, expected = FOUND[name]
    assert names(bundle, touch(tmp_path, *paths)) == expected


@pytest.mark.parametrize("name", INVALID)
@each_bundle
def test_folder_is_refused(bundle: str, name: str, tmp_path: Path) -> None:
    make, rule = INVALID[name]
    make(tmp_path)
    with pytest.raises(ValueError, match=rule):
        find(bundle, tmp_path)


@each_bundle
def test_folder_of_one_case_is_that_scan(bundle: str, tmp_path: Path) -> None:
    """Not its label, nor what an earlier run has left there."""
    image, label = CASE[bundle]
    left = image.replace("img.", "img_seg.").replace("i.", "i_atrium.").replace("g.", "g_seg.").replace("t1", "tumour")
    root = touch(tmp_path / "C", image, label, left)
    (case,) = find(bundle, root)
    assert case["image"] == str(root / image)
    assert case["case"] == ("C_ED" if "acdc" in bundle else "C")
    assert find(bundle, tmp_path) == [case]


@each_bundle
def test_no_case_beside_others_is_left_out(bundle: str, tmp_path: Path) -> None:
    """Neither those in a folder that is a case itself, nor one whose scan is no volume; results are no case."""
    image, _ = CASE[bundle]
    touch(
        tmp_path, f"C/{image}", f"C/D/{image}", "C/out/run_inference_20260101_120000_000000.json", "C/out/D/E_seg.nii"
    )
    assert sorted(name[0] for name in names(bundle, tmp_path / "C")) == ["C", "D"]
    touch(tmp_path, "C/F/scan.mha")
    with pytest.raises(ValueError, match=r"case F: .*/C/F: holds no scan, other than the folders beside it"):
        find(bundle, tmp_path / "C")


@pytest.mark.parametrize("bundle", [name for name in NAMES if "brats" not in name])  # which name results after cases
def test_results_of_one_case_after_another_have_places_of_their_own(bundle: str, tmp_path: Path) -> None:
    image, _ = CASE[bundle]
    touch(tmp_path, f"C/{image}", f"D/{image}")
    root_folder = data_module(bundle).root_folder
    assert {root_folder(tmp_path / place) for place in ("", "C", f"D/{image}")} == {str(tmp_path)}
    assert root_folder("/nowhere/to/be")  # MONAI Label has no such folder
    (case,) = find(bundle, tmp_path / "D" / image)
    assert case["case"] == ("D_ED" if "acdc" in bundle else "D")


@each_bundle
def test_two_files_for_one_scan_or_label(bundle: str, tmp_path: Path) -> None:
    """The label matters to trainings alone; what names a case twice by capital letters does too."""
    data = data_module(bundle)
    given: dict[str, Any] = {"sequences": ("t1", "flair")} if hasattr(data, "sequence_files") else {}
    image, label = CASE[bundle]
    for index, twice in enumerate((image, label)):
        root = tmp_path / str(index)
        touch(root, *(f"{folder}/{file}" for folder in "CD" for file in (image, label)))
        touch(root, f"C/{twice.partition('.')[0]}.nii")
        with pytest.raises(ValueError, match=rf"case C: .*is ambiguous: {twice.partition('.')[0]}\."):
            data.read_split(root, **given)
    with pytest.raises(ValueError, match="is ambiguous"):
        find(bundle, tmp_path / "0")
    touch(tmp_path / "2", *(f"{folder}/{file}" for folder in "Cc" for file in (image, label)))
    with pytest.raises(ValueError, match=r"differs from C.* only in case"):
        find(bundle, tmp_path / "2")


@pytest.mark.parametrize("file", ["slice.dcm", "IM0001", "scan.mha", "notes.txt"])
@each_bundle
def test_file_of_another_format(bundle: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{file}: is no scan, which ends in .*dcm2niix"):
        find(bundle, touch(tmp_path, file) / file)


@each_bundle
def test_label_that_lies_beside_its_scan_is_no_scan(bundle: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a_seg.nii")
    with pytest.raises(ValueError, match=r"case a: .*a_seg\.nii: is a label map or a result of the scan beside it"):
        find(bundle, tmp_path / "a_seg.nii")


@pytest.mark.parametrize("file", ["X_seg.nii.gz", "X_tumour.nii.gz"])
def test_label_of_a_scan_of_several_files_is_no_scan(file: str, tmp_path: Path) -> None:
    """Any of the sequences is the scan, also one that the student does without."""
    touch(tmp_path, "X_t1.nii.gz", "X_flair.nii.gz", "X_t1ce.nii.gz", file)
    with pytest.raises(ValueError, match=rf"case X: .*{file}: is a label map or a result of the scan beside it"):
        find("hadnet_brats_mri", tmp_path / file)
    for name in ("t1", "t1ce"):
        assert names("hadnet_brats_mri", tmp_path / f"X_{name}.nii.gz") == ["X"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@each_bundle
def test_unreadable_folder(bundle: str, tmp_path: Path) -> None:
    touch(tmp_path, "data/a.nii")
    (tmp_path / "data").chmod(0)
    with pytest.raises(ValueError, match=r"data: (dataset_dir )?cannot be (read|listed)"):
        find(bundle, tmp_path / "data")


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", reject)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: cannot be listed (Permission denied)")):
        scans.visible(tmp_path)
    with pytest.raises(ValueError, match="dataset_dir cannot be read"):
        scans.existing_folder("a" * 300)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a\\b", "a\x00", "a\n", " a", "a:b", "ü" * 101, 1, None, ["a"]]
)
def test_names_that_are_none(name: Any) -> None:
    assert scans.problem_of_name(name)
    assert not scans.problem_of_name("ü" * 100)
    assert not scans.problem_of_name("BraTS-GLI-00001-000 (2)")


@pytest.mark.parametrize("bundle", NAMES)
def test_whatever_a_bundle_writes_beside_scans_is_known(bundle: str) -> None:
    """An ending of masks that is new must be told to the module that finds scans."""
    endings = set()
    for workflow in workflows(bundle):
        config = ConfigParser(ConfigParser.load_config_files(files_of(bundle, workflow)))
        endings |= set(re.findall(r"'postfix': '(\w+)'", str(config.get())))
    assert endings
    assert all(scans.DERIVED.fullmatch(f"P1_{ending}")[1] == "P1" for ending in endings)  # type: ignore[index]
    assert recipe(bundle)
