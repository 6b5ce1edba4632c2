"""Layouts of data folders and test sets of the cooperative-training bundle."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch

from cooperative_training.data import evaluation_cases, find_images, read_split, root_folder
from cooperative_training.shared.validation import InputError
from cooperative_training.transforms import ScaleRawd
from tests.bundles.cooperative_training.files import distributed, patients, reorganised, split_file, volume


class TestLayouts:
    def test_distributed(self, tmp_path: Path) -> None:
        distributed(tmp_path, "patient001", frames=(1, 12))
        folder = distributed(tmp_path, "patient002", frames=(4, 11))
        split = read_split(
            tmp_path, split_file(tmp_path.parent, training=["patient002"], validation=["patient001"], test=[])
        )
        assert split["training"] == [
            {
                "case": f"patient002_{frame}",
                "patient": "patient002",
                "frame": frame,
                "image": str(folder / f"patient002_frame{number}.nii.gz"),
                "label": str(folder / f"patient002_frame{number}_gt.nii.gz"),
            }
            for frame, number in (("ED", "04"), ("ES", "11"))
        ]
        assert [case["case"] for case in split["validation"]] == ["patient001_ED", "patient001_ES"]
        assert split["test"] == []

    def test_reorganised(self, tmp_path: Path) -> None:
        for name in ("001", "A1D0Q7"):
            reorganised(tmp_path, name)
        cases = read_split(tmp_path, split_file(tmp_path.parent, training=["001"], validation=["A1D0Q7"]))
        assert cases["training"][1] == {
            "case": "001_ES",
            "patient": "001",
            "frame": "ES",
            "image": str(tmp_path / "001/ES_img.nii.gz"),
            "label": str(tmp_path / "001/ES_seg.nii.gz"),
        }

    def test_testing_folder_is_the_test_split(self, tmp_path: Path) -> None:
        """Patients that ACDC sets aside for the test are never drawn for training."""
        for number in range(1, 6):
            distributed(tmp_path / "training", f"patient{number:03d}")
        for number in (101, 102):
            distributed(tmp_path / "testing", f"patient{number:03d}")
        split = read_split(tmp_path)
        assert patients(split["test"]) == ["patient101", "patient102"]
        assert sorted(patients(split["training"]) + patients(split["validation"])) == [
            f"patient00{number}" for number in range(1, 6)
        ]
        assert len(find_images(tmp_path)) == 14

    def test_relative_path_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reorganised(tmp_path / "data", "001")
        monkeypatch.chdir(tmp_path)
        assert find_images("data")[0]["image"] == str(tmp_path / "data/001/ED_img.nii.gz")

    @pytest.mark.parametrize(
        ("info", "file", "rule"),
        [
            ("ED: 1\nES: 7\n", "patient001_frame07.nii.gz", "image is missing, Info.cfg names frame 7 as ES"),
            ("ED: 1\n", "Info.cfg", "must give the number of the ES frame"),
            ("ED: 1\nES: last\n", "Info.cfg", "must give the number of the ES frame"),
            (None, "Info.cfg", "must give the number of the ES frame"),
        ],
    )
    def test_info_without_frames(self, tmp_path: Path, info: str | None, file: str, rule: str) -> None:
        folder = distributed(tmp_path, "patient001")
        distributed(tmp_path, "patient002")
        (folder / "Info.cfg").write_text(info) if info else (folder / "Info.cfg").unlink()
        with pytest.raises(InputError) as caught:
            read_split(tmp_path)
        assert f"case patient001_ES: {folder / file}: {rule}" in str(caught.value)
        with pytest.raises(InputError, match=rule):
            find_images(tmp_path)

    def test_folder_of_neither_layout(self, tmp_path: Path) -> None:
        distributed(tmp_path, "patient001")
        volume(tmp_path / "patient002/scan.nii.gz")
        with pytest.raises(InputError, match=r"case patient002: .*patient002: holds neither Info.cfg and frames nor"):
            read_split(tmp_path)


class TestEvaluationCases:
    @pytest.fixture
    def cases(self, tmp_path: Path) -> dict[str, list[dict[str, str]]]:
        for name in ("patient001", "patient002", "patient003", "patient004"):
            distributed(tmp_path / "acdc", name)
        lists = {"training": ["patient001"], "validation": ["patient002"], "test": ["patient003", "patient004"]}
        return read_split(tmp_path / "acdc", split_file(tmp_path, **lists))

    def test_one_set(self, cases: dict[str, list[dict[str, str]]]) -> None:
        assert evaluation_cases(cases) == [{**case, "set": "clean"} for case in cases["test"]]
        assert patients(evaluation_cases(cases, subset="validation")) == ["patient002"]
        assert patients(evaluation_cases({**cases, "test": []})) == ["patient002"]

    def test_corrupted_versions_of_tested_patients_only(
        self, cases: dict[str, list[dict[str, str]]], tmp_path: Path
    ) -> None:
        for name in ("patient001_0", "patient002_0", "patient003_0", "patient003_1"):
            reorganised(tmp_path / "motion", name)
        found = evaluation_cases(cases, test_sets={"RandomMotion": str(tmp_path / "motion")})[4:]
        assert [case["case"] for case in found] == [
            f"RandomMotion/patient003_{j}_{frame}" for j in (0, 1) for frame in ("ED", "ES")
        ]
        assert {(case["patient"], case["set"]) for case in found} == {("patient003", "RandomMotion")}
        assert found[3]["image"] == str(tmp_path / "motion/patient003_1/ES_img.nii.gz")

    def test_other_spelling_of_the_same_patients(self, cases: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
        """`001_0` is a version of `patient001`, which trains: it is not tested."""
        for name in ("001_0", "004_2"):
            reorganised(tmp_path / "bias", name)
        found = evaluation_cases(cases, test_sets={"RandomBias": str(tmp_path / "bias")})[4:]
        assert [case["case"] for case in found] == ["RandomBias/004_2_ED", "RandomBias/004_2_ES"]

    def test_what_corrupt_wrote_is_not_scaled_again(
        self, cases: dict[str, list[dict[str, str]]], tmp_path: Path
    ) -> None:
        """Its manifest marks a set, and the scaling of evaluate.yaml leaves marked volumes as they are."""
        for name in ("made", "other"):
            reorganised(tmp_path / name, f"{cases['test'][0]['patient']}_0")
        (tmp_path / "made/manifest.json").write_text("{}")
        sets = {name: str(tmp_path / name) for name in ("made", "other")}
        found = {case["set"]: case for case in evaluation_cases(cases, test_sets=sets)}
        scale = ScaleRawd("image", lower=2, upper=98, b_min=0, b_max=1)
        image = torch.linspace(0, 0.5, 101).reshape(1, 101, 1, 1)
        items: dict[str, dict[Hashable, Any]] = {name: {"image": image} for name in found}
        for name, case in found.items():
            items[name].update(scaled=case.get("scaled"))
        peaks = {name: float(scale(item)["image"].max()) for name, item in items.items()}
        assert peaks["made"] == 0.5
        assert peaks["clean"] == peaks["other"] == pytest.approx(1, abs=0.03)

    def test_all_of_a_foreign_set(self, cases: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
        for name in ("A0S9V9", "B1_2"):
            reorganised(tmp_path / "mms", name)
        found = evaluation_cases(cases, test_sets={"MM": str(tmp_path / "mms")})
        assert [case["case"] for case in found[4:]] == ["MM/A0S9V9_ED", "MM/A0S9V9_ES", "MM/B1_2_ED", "MM/B1_2_ES"]
        assert len({case["case"] for case in found}) == 8

    def test_refused(self, cases: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
        reorganised(tmp_path / "motion", "patient001_0")
        for given, rule in (
            ({"test_sets": {"Motion": str(tmp_path / "motion")}}, "test set Motion holds no patient of the test split"),
            ({"test_sets": {"Motion": str(tmp_path / "none")}}, "none: test set Motion does not exist"),
            ({"test_sets": {"clean": str(tmp_path / "motion")}}, "clean is the name of the split's own scans"),
            ({"subset": "tests"}, "subset: must be one of training, validation, test, got tests"),
        ):
            with pytest.raises(InputError, match=rule):
                evaluation_cases(cases, **given)


class TestFindImages:
    def test_one_volume(self, tmp_path: Path) -> None:
        path = volume(tmp_path / "scan.1.nii.gz")
        assert find_images(path) == [{"case": "scan.1", "image": str(path)}]
        assert root_folder(path) == str(tmp_path) == root_folder(tmp_path)

    def test_flat_folder(self, tmp_path: Path) -> None:
        for name in ("b.nii", "a.nii.gz", "patient001_frame01.nii.gz", "a_gt.nii.gz", "b_seg.nii.gz", "c_4d.nii.gz"):
            volume(tmp_path / name)
        (tmp_path / "notes.txt").touch()
        assert [case["case"] for case in find_images(tmp_path)] == ["a", "b", "patient001_frame01"]

    def test_patients(self, tmp_path: Path) -> None:
        distributed(tmp_path, "patient001", frames=(2, 9))
        for path in reorganised(tmp_path, "zoe").glob("ES_*"):
            path.unlink()
        (tmp_path / "results").mkdir()
        (tmp_path / "results/run_inference_20260101_120000_000000.json").touch()
        assert find_images(tmp_path) == [
            {"case": "patient001_ED", "image": str(tmp_path / "patient001/patient001_frame02.nii.gz")},
            {"case": "patient001_ES", "image": str(tmp_path / "patient001/patient001_frame09.nii.gz")},
            {"case": "zoe_ED", "image": str(tmp_path / "zoe/ED_img.nii.gz")},
        ]

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"{tmp_path}: holds neither patients nor a volume"):
            find_images(tmp_path)
        with pytest.raises(InputError, match="nowhere: dataset_dir does not exist"):
            find_images(tmp_path / "nowhere")
