"""Splits of the cooperative-training bundle: published, drawn, from files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cooperative_training.data import read_split
from cooperative_training.shared.patients import draw
from cooperative_training.shared.validation import InputError
from cooperative_training.splits import published_split
from tests.bundles.cooperative_training.files import distributed, patients, reorganised, split_file
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/cooperative_training/golden.npz")
CONFIGS = REPO / "bundles/cooperative_training_acdc_mri/configs"


class TestSplits:
    @pytest.mark.parametrize("cval", range(5))
    def test_published_ten_subjects(self, cval: int) -> None:
        split = published_split("10", cval, strict=False)
        assert split["training"] == GOLDEN[f"split/10/{cval}/train"].tolist()
        assert split["validation"] == GOLDEN[f"split/10/{cval}/validate"].tolist()
        assert split["test"] == GOLDEN["split/standard/test"].tolist()

    def test_published_standard(self) -> None:
        split = published_split("standard", 3)
        assert split["training"] == GOLDEN["split/standard/train"].tolist()
        assert split["validation"] == GOLDEN["split/standard/validate"].tolist()
        everyone = [patient for part in split.values() for patient in part]
        assert sorted(everyone) == [f"{number:03d}" for number in range(1, 101)]

    @pytest.mark.parametrize(("setting", "count"), [(1, 1), (10, 10), (10.0, 10), ("0.5", 20), (0.26, 10), ("40", 40)])
    def test_size_of_the_draw(self, setting: str | float, count: int) -> None:
        split = published_split(setting, 0)
        assert len(set(split["training"])) == count

    def test_fraction_and_number_draw_the_same(self) -> None:
        assert published_split(0.25, 4) == published_split(10, 4)

    def test_shots(self) -> None:
        assert published_split("three_shot", 4)["training"] == ["002", "042", "095"]
        one = published_split("one_shot", 3, strict=False)
        assert one["training"] == ["062"]
        assert one["validation"] == ["011", "071", "022", "062", "095", "002", "042"]
        assert published_split("one_shot", 3)["validation"] == ["011", "071", "022", "095", "002", "042"]
        unlabelled = [f"{tens}{ones}" for tens in ("01", "03", "05", "07", "09") for ones in "6789"]
        upper = published_split("three_shot_upperbound", 0)["training"]
        assert upper[:3] == ["002", "022", "042"]
        assert len(upper) == 28
        assert set(unlabelled) < set(upper)
        assert published_split("25_shot_upperbound", 2)["training"][:25] == published_split(25, 2)["training"]

    @pytest.mark.parametrize(("cval", "shared"), [(0, []), (1, ["002", "022"]), (4, ["022"])])
    def test_published_overlap(self, cval: int, shared: list[str], caplog: pytest.LogCaptureFixture) -> None:
        """Patients that train and validate are dropped from validation, or kept with a warning that names them."""
        with caplog.at_level(logging.WARNING):
            strict, loose = (published_split(10, cval, strict=strict) for strict in (True, False))
        assert [patient for patient in loose["validation"] if patient not in strict["validation"]] == shared
        assert strict["training"] == loose["training"]
        assert set(strict["training"]).isdisjoint(strict["validation"])
        assert [record.getMessage() for record in caplog.records] == (
            [f"Setting 10, cval {cval}: {', '.join(shared)} train and validate, as published"] if shared else []
        )

    @pytest.mark.parametrize("setting", ["41", 0, -3, 2.5, "0.01", "nan", "all", "one_shots", "10_upperbound"])
    def test_unknown_setting(self, setting: str | float) -> None:
        with pytest.raises(InputError, match=f"setting: must .*{setting}"):
            published_split(setting)

    @pytest.mark.parametrize("cval", [-1, 5])
    def test_unknown_cval(self, cval: int) -> None:
        with pytest.raises(InputError, match=f"cval: must be one of 0 to 4, got {cval}"):
            published_split(10, cval)

    @pytest.mark.parametrize("prefix", ["", "patient"])
    def test_published_names_match_folders(self, prefix: str, tmp_path: Path) -> None:
        for number in range(1, 101):
            (tmp_path / f"{prefix}{number:03d}").mkdir()
            for name in ("ED_img", "ED_seg", "ES_img", "ES_seg"):
                (tmp_path / f"{prefix}{number:03d}" / f"{name}.nii.gz").touch()
        split = read_split(tmp_path, setting="three_shot", cval=1)
        assert patients(split["training"]) == [f"{prefix}{name}" for name in ("042", "062", "082")]
        assert len(split["test"]) == 40

    def test_more_than_the_data_hold(self, tmp_path: Path) -> None:
        distributed(tmp_path, "patient001")
        with pytest.raises(InputError, match=f"case 073: {tmp_path}/073: has no folder"):
            read_split(tmp_path, setting=10)

    def test_file_and_setting(self, tmp_path: Path) -> None:
        file = split_file(tmp_path, training=["001"], validation=["002"])
        with pytest.raises(InputError, match="exclude each other"):
            read_split(tmp_path, file, setting=10)

    @pytest.mark.parametrize(
        ("content", "rule"),
        [
            ({"training": ["001"], "validation": ["002"], "test": "003"}, "must hold lists of case names"),
            ({"training": ["001"], "validation": ["002"], "test": ["001"]}, "001: .*: is listed twice"),
            ({"training": ["001"], "validation": ["002"], "test": ["009"]}, "case 009: .*009: has no folder"),
        ],
    )
    def test_test_list(self, content: dict[str, Any], rule: str, tmp_path: Path) -> None:
        for name in ("001", "002"):
            reorganised(tmp_path / "data", name)
        with pytest.raises(InputError, match=rule):
            read_split(tmp_path / "data", split_file(tmp_path, **content))

    def test_draw_is_balanced(self, tmp_path: Path) -> None:
        """Of 10 patients in groups of 5, 3 and 2, 40 % validate: 2, 1 and 1 of the groups."""
        groups = {f"p{i}": "AAAAABBBCC"[i] for i in range(10)}
        for seed in range(5):
            split = draw(groups, validation=0.4, seed=seed)
            assert sorted(groups[name] for name in split["validation"]) == ["A", "A", "B", "C"]
            assert sorted(split["training"] + split["validation"]) == sorted(groups)
        draws = {tuple(draw(groups, validation=0.4, seed=seed)["validation"]) for seed in range(9)}
        assert len(draws) > 4
        for index in range(10):
            distributed(tmp_path, f"patient{index:03d}", group="AB"[index % 2])
        validation = patients(read_split(tmp_path)["validation"])
        assert sorted(int(name[-1]) % 2 for name in validation) == [0, 1]

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_stored_splits(self, seed: int) -> None:
        split = json.loads((CONFIGS / f"split_acdc40_seed{seed}.json").read_text())
        lists = [split[name] for name in ("training", "validation", "test")]
        assert [len(names) for names in lists] == [10, 5, 25]
        for names, share in zip(lists, (2, 1, 5), strict=True):
            tens = [(int(name[-3:]) - 1) // 20 for name in names]  # ACDC numbers its five groups in twenties
            assert [tens.count(group) for group in range(5)] == [share] * 5
        assert len({name for names in lists for name in names}) == 40
        groups = {name: str((int(name[-3:]) - 1) // 20) for names in lists for name in names}
        assert lists == list(draw(groups, validation=5, test=25, seed=seed).values())
