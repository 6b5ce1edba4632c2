"""Real command lines of runs in which cases fail: what the user sees, and what lies on the disk."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import NamedPath
from tests.support.corruption import cut
from tests.support.runs import arguments, cases, command_line, copy

BUNDLE = "vnet_atrial_mri"


def inference(data: Path, folder: Path, *, largest: int = resource.RLIM_INFINITY, **options: Any) -> tuple[int, str]:
    """Exit status and last line on stderr of an inference that can write files of at most `largest` bytes."""
    given = arguments(BUNDLE, "inference", data=data, folder=folder, **options)
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *command_line(given)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    return done.returncode, done.stderr.strip().splitlines()[-1]


def errors(folder: Path) -> dict[str, str]:
    """The column `error` of the report by case."""
    with (folder / "eval/report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["case"] for row in rows}) == len(rows) == 5
    return {row["case"]: row["error"] for row in rows}


def test_one_scan_of_five_breaks(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    data, _ = copy(phantoms(BUNDLE), tmp_path / "data"), copy(tiny_weights(BUNDLE), tmp_path / "models")
    case = cases(BUNDLE, data)["training"][0]
    cut(case["image"])
    status, line = inference(data, tmp_path, check_cases="$None")
    assert status == 1
    found = errors(tmp_path)
    assert line == f"1 of 5 cases failed: {case['case']} ({found[case['case']]})"
    assert [name for name, error in found.items() if error] == [case["case"]]
    masks = sorted(path.parent.name for path in (tmp_path / "eval").rglob("*_atrium.nii.gz"))
    assert masks == sorted(name for name, error in found.items() if not error)


def test_masks_are_larger_than_a_file_may_be(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    status, line = inference(phantoms(BUNDLE), tmp_path, largest=100_000, output_ext=".nii")
    assert status == 1
    assert line.startswith("5 of 5 cases failed: ")
    for name, error in errors(tmp_path).items():
        assert error.endswith(f"File too large: '{tmp_path}/eval/{name}/lgemri_atrium.nii'")
    left = [path.suffix for path in (tmp_path / "eval").rglob("*") if path.is_file()]
    assert sorted(left) == [".csv", ".json"]
