"""Real scans of every bundle: they are read, a step is made, and masks come back on their grids."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from tests.conftest import NamedPath, config_files, each_bundle, label_values, recipe, small
from tests.support.runs import copy, prediction, run
from tools import REPO

read = LoadImage(image_only=True)


def split_of(data: Path, wanted: dict[str, Any], file: Path) -> Path:
    """Writes a split file: the named patients, or as many as wanted, in the order of their names."""
    names = iter(sorted(path.name for path in data.iterdir() if path.is_dir()))
    lists = {name: [next(names) for _ in range(who)] if isinstance(who, int) else who for name, who in wanted.items()}
    file.write_text(json.dumps(lists))
    return file


@each_bundle
def test_a_step_and_masks(bundle: str, real_data: Path, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """An epoch of one or two steps, then an evaluation: a row per case, masks on the grids of their scans."""
    known = recipe(bundle)["real"]
    copy(tiny_weights(bundle), tmp_path / "models")
    data = real_data / known["data"]
    extra = [str(REPO / "bundles" / bundle / f"configs/{stem}.yaml") for stem in known.get("files", [])]
    given: dict[str, Any] = {**known["overrides"], "max_epochs": 1}
    given["split_file"] = str(split_of(data, known["split"], tmp_path / "split.json"))
    for workflow in ("train", "evaluate"):
        files = config_files(bundle, workflow) + extra
        config = ConfigParser.load_config_files(files)
        had = {name: value for name, value in given.items() if name.partition("#")[0] in config}
        run(bundle, workflow, data=data, folder=tmp_path, config_file=files, **had)

    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({**small(bundle, "evaluate"), **given, "dataset_dir": str(data)})
    cases = parser.get_parsed_content("validate::dataset::data")
    with (tmp_path / "eval/metrics.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {case["case"] for case in cases}
    for case in cases:
        mask, scan = read(prediction(tmp_path / "eval", case, data=data)), read(case["image"])
        assert mask.shape == scan.shape
        assert torch.allclose(mask.affine, scan.affine, atol=1e-4)
        assert set(mask.unique().tolist()) <= label_values(bundle) | set(known.get("values", []))
        assert 0 <= float(rows[case["case"]]["dice"]) <= 1
