"""The check of a user's scans, on volumes of a few voxels."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tools.shared import validation as checks

LABEL = np.zeros((4, 5, 6), np.uint8)
LABEL[1:3, 2, 3] = 1
IMAGE = np.arange(LABEL.size, dtype=np.float32).reshape(LABEL.shape)


def volume(path: Path, array: Any, affine: Any = None) -> str:
    nibabel.save(nibabel.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)
    return str(path)


def a_case(folder: Path, name: str, *, label: Any = LABEL, affine: Any = None) -> dict[str, str]:
    """Two images and a label map."""
    case = {"case": name}
    for key in ("t1", "t2"):
        case[key] = volume(folder / f"{name}_{key}.nii.gz", IMAGE)
    return case | {"label": volume(folder / f"{name}_label.nii.gz", label, affine)}


def problems(case: dict[str, str], **rules: Any) -> list[str]:
    """The lines of the error, without the paths."""
    try:
        checks.check_cases([[case]], **{"images": ("t1", "t2")} | rules)
    except checks.InputError as error:
        return [re.sub(r": /\S*/", ": ", line.strip()) for line in str(error).splitlines()[1:]]
    return []


def test_good_cases(tmp_path: Path) -> None:
    splits = [[a_case(tmp_path, "a"), a_case(tmp_path, "b")], [a_case(tmp_path, "c")]]
    checks.check_cases(splits, images=("t1", "t2"))


@pytest.mark.parametrize(
    ("values", "allowed", "rule"),
    [
        ((0, 1), [[0, 1]], None),
        ((0, 255), [[0, 1], [0, 255]], None),
        ((1, 255), [[0, 1], [0, 255]], "label values must be among [0, 1] or [0, 255], found [1.0, 255.0]"),
        ((0, 4), [[0, 1, 2, 4]], None),
        ((0, 3), [[0, 1, 2, 4]], "label values must be among [0, 1, 2, 4], found [0.0, 3.0]"),
        ((0, 0), [[0, 1]], "label is empty, nothing is marked in it"),
    ],
)
def test_label_values(values: tuple[int, int], allowed: list[list[int]], rule: str | None, tmp_path: Path) -> None:
    """A label map may hold a subset of one of the sets, not a mixture of two."""
    case = a_case(tmp_path, "a", label=np.where(LABEL > 0, *values[::-1]).astype(np.uint8))
    assert problems(case, label_values=allowed) == ([] if rule is None else [f"case a: a_label.nii.gz: {rule}"])


def test_empty_label_where_it_may_be(tmp_path: Path) -> None:
    assert problems(a_case(tmp_path, "a", label=0 * LABEL), foreground=False) == []


def test_no_label_wanted(tmp_path: Path) -> None:
    case = a_case(tmp_path, "a")
    Path(case.pop("label")).unlink()
    assert problems(case, label=None) == []


def test_every_image_is_checked(tmp_path: Path) -> None:
    case = a_case(tmp_path, "a")
    volume(Path(case["t2"]), np.full(LABEL.shape, np.nan, np.float32))
    assert problems(case) == ["case a: a_t2.nii.gz: t2 holds NaN or infinite voxels"]


def test_images_must_share_a_grid(tmp_path: Path) -> None:
    case = a_case(tmp_path, "a")
    volume(Path(case["t2"]), np.ones((4, 5, 7), np.float32) + np.arange(7))
    assert problems(case) == ["case a: a_t2.nii.gz: shape (4, 5, 7) differs from the t1's (4, 5, 6)"]


@pytest.mark.parametrize(("shift", "rules"), [(0.004, 0), (0.2, 1)])
def test_affine_tolerance(shift: float, rules: int, tmp_path: Path) -> None:
    """Headers round to a few micrometres; a tenth of a millimetre is another grid."""
    affine = np.eye(4)
    affine[0, 3] = shift
    found = problems(a_case(tmp_path, "a", affine=affine))
    assert found == ["case a: a_label.nii.gz: affine differs from the t1's by up to 0.2 mm"] * rules


def test_case_in_two_splits(tmp_path: Path) -> None:
    """The files count, not the names; the same case twice in one split is repetition, no leak."""
    case = a_case(tmp_path, "a")
    checks.check_cases([[case, case]], images=("t1", "t2"))
    with pytest.raises(checks.InputError, match=r"case renamed: \S+a_t1\.nii\.gz: is in two splits"):
        checks.check_cases([[case], [case | {"case": "renamed"}]], images=("t1", "t2"))


def test_empty_split(tmp_path: Path) -> None:
    with pytest.raises(checks.InputError, match="split 2: holds no case"):
        checks.check_cases([[a_case(tmp_path, "a")], []], images=("t1", "t2"))


def test_case_without_a_name(tmp_path: Path) -> None:
    """It is called by its image file."""
    case = {"image": str(tmp_path / "scan.nii.gz")}
    with pytest.raises(checks.InputError, match=r"case scan\.nii\.gz: \S+scan\.nii\.gz: image is missing"):
        checks.check_cases([[case]], label=None)


@pytest.mark.parametrize("size", [[32, 16, 48], [32, 40, 16], [32, 0, 16], [-16, 16, 16]])
def test_check_sizes(size: list[int]) -> None:
    if size == [32, 16, 48]:
        checks.check_sizes(16, patch_size=size)
    else:
        with pytest.raises(checks.InputError, match=r"roi: must be multiples of 16, got \["):
            checks.check_sizes(16, patch_size=[16, 16, 16], roi=size)


@pytest.mark.parametrize("wrapped", [True, False])
def test_install_excepthook(wrapped: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An `InputError` shows its message alone, however deep it lies; any other error keeps its traceback."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    checks.install_excepthook()
    outer = RuntimeError("outer")
    outer.__cause__ = ValueError("middle")
    outer.__cause__.__cause__ = checks.InputError([("a", "file", "rule")]) if wrapped else KeyError("inner")
    sys.excepthook(RuntimeError, outer, None)
    shown = capsys.readouterr().err
    if wrapped:
        assert shown == "\n1 problem(s) in the input, nothing was started:\n  case a: file: rule\n"
    else:
        assert all(text in shown for text in ("KeyError: 'inner'", "ValueError: middle", "RuntimeError: outer"))
        outer.__cause__ = OSError(28, "No space left on device", "report.csv")
        sys.excepthook(RuntimeError, outer, None)
        assert capsys.readouterr().err == "\n[Errno 28] No space left on device: 'report.csv'\n"
        outer.__cause__ = FloatingPointError("the training diverged")
        sys.excepthook(RuntimeError, outer, None)
        assert capsys.readouterr().err == "\nthe training diverged\n"
