"""What is wrong with scans of several sequences is said before any work starts: case, file and rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadnet.checks import check_scans, check_sequences
from hadnet.shared.regions import label_sets
from hadnet.shared.validation import Case, InputError
from tests.bundles.hadnet.files import SEQUENCES, label, scan, write, write_case

STUDENT = ("flair", "t1", "t2")
GIVEN: dict[str, Any] = {
    "mask_from": STUDENT,
    "stack": SEQUENCES,
    "size": (16, 16, 16),
    "pixdim": (1, 1, 1),
    "cut": False,
}


def check(*folders: Path, sequences: Sequence[str] = SEQUENCES, **settings: Any) -> None:
    cases = [
        {"case": f.name, "image": str(f / f"{f.name}_flair.nii.gz"), "label": str(f / f"{f.name}_seg.nii.gz")}
        for f in folders
    ]
    check_scans([cases], sequences=[sequences], **GIVEN | settings)


def test_good_cases_pass(tmp_path: Path) -> None:
    """Also without tumour and without enhancing tumour."""
    volumes = {"a": label(1, 2, 4), "b": label(), "c": label(1, 2), "d": label(1, 4)}
    check(*(write_case(tmp_path / name, volumes={"label": volume}) for name, volume in volumes.items()))


@pytest.mark.parametrize("name", SEQUENCES)
def test_missing_sequence_is_named(name: str, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    file = folder / f"X_{name}.nii.gz"
    file.unlink()
    with pytest.raises(InputError, match=rf"case X: {file}: {name} is missing"):
        check(folder)


def test_student_needs_no_contrast_agent_unless_its_brain_does(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    (folder / "X_t1ce.nii.gz").unlink()
    check(folder, sequences=STUDENT)
    with pytest.raises(InputError, match="t1ce is missing"):
        check(folder, sequences=STUDENT, mask_from=SEQUENCES)


def test_sequences_on_different_grids(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X", volumes={"t1": scan(2)[:-1]})
    write(folder / "X_t2.nii.gz", scan(3), affine=(-1.0, -1.1, 1.0))
    with pytest.raises(InputError) as caught:
        check(folder)
    message = str(caught.value)
    assert f"{folder / 'X_t1.nii.gz'}: shape (11, 14, 10) differs from the flair's (12, 14, 10)" in message
    assert f"{folder / 'X_t2.nii.gz'}: affine differs from the flair's by up to 1.4 mm" in message


@pytest.mark.parametrize(
    ("values", "order", "allowed"),
    [
        ((1, 5), ("NCR", "ED", "ET", "ET"), r"\[0, 1, 2, 3, 4\]"),
        ((1, 5), ("NCR", "ED", "NCR", "ET"), r"\[0, 1, 2, 3, 4\]"),
        ((1, 4), ("ED", "NCR", "ET"), r"\[0, 1, 2, 3\]"),
    ],
)
def test_other_label_values(values: tuple[int, ...], order: tuple[str, ...], allowed: str, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X", volumes={"label": label(*values)})
    with pytest.raises(InputError, match=rf"X_seg.nii.gz: label values must be among {allowed}, found"):
        check(folder, label_order=order)


def test_enhancing_tumour_has_one_value_in_a_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """3 as from 2023 on or 4 as before; both in one map are of BraTS 2015, or of 2024, where 4 is the cavity."""
    caplog.set_level("INFO")

    def folder(name: str, *values: int, year: int = 2019) -> Path:
        return write_case(tmp_path / name, volumes={"label": label(*values)}, year=year)

    first, second = folder("A", 1, 3), folder("B", 2, 4)
    check(first, folder("C", 1, 2))
    assert f"Enhancing tumour is 3 in manual labels, as of case A: {first / 'A_seg.nii.gz'}" in caplog.text
    other = (
        rf"case B: {second / 'B_seg.nii.gz'}: has 4 for enhancing tumour, and 3 has case A: {first / 'A_seg.nii.gz'}"
    )
    with pytest.raises(InputError, match=rf"{other}; a data set has one convention, 4 .* until 2021 or 3 .* from 2023"):
        check(first, second)
    with pytest.raises(
        InputError, match=r"D_seg\.nii\.gz: label values 3 and 4 must not be in one file: .*cavity.*to 0"
    ):
        check(first, folder("D", 1, 3, 4))
    check(folder("D", 1, 3, 4), label_order=("NCR", "ED", "NCR", "ET"))


def test_cavity_of_2024_is_not_taken_for_enhancing_tumour(tmp_path: Path) -> None:
    """Its cases are named as from 2023 on, where 4 never enhances, even where no scan of the run has a 3."""
    name = "BraTS-GLI-02062-100"
    folder = write_case(tmp_path / name, volumes={"label": label(1, 2, 4)})
    (folder / f"{name}_seg.nii.gz").rename(folder / f"{name}-seg.nii.gz")
    case = {"case": name, "image": str(folder / f"{name}_flair.nii.gz"), "label": str(folder / f"{name}-seg.nii.gz")}
    with pytest.raises(InputError, match=rf"case {name}: .*-seg\.nii\.gz: holds 4, and its name is of 2023 or later"):
        check_scans([[case]], sequences=[SEQUENCES], **GIVEN)


def test_label_sets_by_the_meaning_of_values() -> None:
    assert label_sets(["NCR", "ED", "ET", "ET"]) == [[0, 1, 2, 3], [0, 1, 2, 4]]
    assert label_sets(["NCR", "ED", "NCR", "ET"]) == [[0, 1, 2, 3, 4]]
    assert label_sets(["ED", "NCR", "ET"]) == [[0, 1, 2, 3]]
    for wrong in (["NCR", "ED"], ["NCR", "ED", "LV"]):
        with pytest.raises(InputError, match="label_order: must name NCR, ED, ET"):
            label_sets(wrong)


def test_empty_brain(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X", volumes={"t2": np.where(scan() > 0, 0, scan(1) + 1).astype(np.int16)})
    rule = r"X_flair.nii.gz: there is no brain: no voxel in which flair, t1, t2 are all non-zero"
    with pytest.raises(InputError, match=rule):
        check(folder)


def test_constant_sequence(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X", volumes={"t1ce": (scan() > 0).astype(np.int16)})
    with pytest.raises(InputError, match=r"X_t1ce.nii.gz: t1ce is the same everywhere in the brain"):
        check(folder)
    check(folder, sequences=STUDENT)


@pytest.mark.parametrize(
    ("size", "pixdim", "fits"),
    [((6, 10, 8), (1, 1, 1), True), ((5, 16, 16), (1, 1, 1), False), ((3, 5, 4), (2, 2, 2), True)],
)
def test_brain_larger_than_what_the_network_sees(
    size: Sequence[int], pixdim: Sequence[float], fits: bool, tmp_path: Path
) -> None:
    """The brain is 8 x 10 x 6 voxels along x, y, z, so 6, 10 and 8 along S, A, L."""
    folder = write_case(tmp_path / "X")
    if fits:
        check(folder, size=size, pixdim=pixdim)
        return
    rule = r"the brain is \[6, 10, 8\] voxels long along S, A, L, the network sees \[5, 16, 16\]: enlarge `size`"
    with pytest.raises(InputError, match=rule):
        check(folder, size=size, pixdim=pixdim)
    check(folder, size=size, pixdim=pixdim, cut=True)


@pytest.mark.parametrize("name", ["training", "validation"])
def test_splits_may_need_different_sequences(name: str, tmp_path: Path) -> None:
    """The teacher learns from all, the student is validated without."""
    cases: dict[str, list[Case]] = {"training": [], "validation": []}
    for key, found in cases.items():
        folder = write_case(tmp_path / key)
        found.append({"image": str(folder / f"{key}_flair.nii.gz"), "label": str(folder / f"{key}_seg.nii.gz")})
    (tmp_path / name / f"{name}_t1ce.nii.gz").unlink()
    if name == "validation":
        check_scans(list(cases.values()), sequences=[SEQUENCES, STUDENT], **GIVEN)
    else:
        with pytest.raises(InputError, match=r"training_t1ce.nii.gz: t1ce is missing"):
            check_scans(list(cases.values()), sequences=[SEQUENCES, STUDENT], **GIVEN)


def volume(path: Path, channels: Sequence[int], **settings: Any) -> None:
    stacked = np.stack([scan(channel) for channel in channels], axis=-1)
    case = {"image": str(write(path, stacked))}
    check_scans([[case]], sequences=[STUDENT], label=None, **GIVEN | settings)


def test_volumes_of_all_sequences(tmp_path: Path) -> None:
    path = tmp_path / "BRATS_1.nii.gz"
    volume(path, range(4))
    volume(path, range(3))
    with pytest.raises(InputError, match=r"BRATS_1.nii.gz: must have 4 \(flair, .*\) or 3 \(.*\) channels, has 5"):
        volume(path, range(5))
    with pytest.raises(InputError, match=r"BRATS_1.nii.gz: the brain is"):
        volume(path, range(4), size=(4, 16, 16))
    with pytest.raises(InputError, match=r"image must be a 4D volume, its shape is \(12, 14, 10\)"):
        check_scans([[{"image": str(write(path, scan()))}]], sequences=[STUDENT], label=None, **GIVEN)


@pytest.mark.parametrize("withheld", [[], ["adc"], list(SEQUENCES)])
def test_withheld_sequences(withheld: list[str]) -> None:
    check_sequences(SEQUENCES, ["t1ce"])
    check_sequences(["flair", "t1ce"], ["t1ce"])
    with pytest.raises(InputError, match="withheld: must be one or more, but not all, of flair, t1ce, t1, t2"):
        check_sequences(SEQUENCES, withheld)
    with pytest.raises(InputError, match="sequences: must be different"):
        check_sequences(["t1", "t1"], ["t1"])
