from pathlib import Path
from typing import Any

import pytest

from tools.demo.cli import collect, write_results
from tools.demo.stages import Stage, stages
from tools.demo.tables import read_metrics
from tools.report.figure import Case

PLACES = {"data": "D", "split": "S.json", "held_out": "U", "held_out_split": "V.json", "output": "O"}
COMPARED: dict[str, Any] = {
    "compare": {"plain": ["p.yaml"], "new": []},
    "stages": [
        {
            "name": "training",
            "title": "{variant} training",
            "run": "training",
            "config": ["a.yaml"],
            "settings": {"ckpt_dir": "{output}/{variant}"},
        },
        {
            "name": "more",
            "title": "t",
            "run": "r",
            "config": ["b.yaml"],
            "alone": True,
            "settings": {"x": 1},
            "renews": "{output}/more",
        },
    ],
    "metrics": "{output}/{variant}/metrics.csv",
}


def option(stage: Stage, name: str) -> str:
    return stage.command[stage.command.index(f"--{name}") + 1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose configs have every setting."""
    monkeypatch.chdir(tmp_path)
    configs = Path.cwd() / "bundles/b/configs"
    configs.mkdir(parents=True)
    for name in "abcp":
        (configs / f"{name}.yaml").write_text("{ckpt_dir: x, output_dir: x, sets: {}, sizes: []}")
    return configs.parent


def test_stage_that_names_the_variant_runs_for_each(folder: Path) -> None:
    plan = stages(COMPARED, folder, places=PLACES, scenario={"config": ["c.yaml"]}, overrides={})
    assert [stage.title for stage in plan] == ["plain training", "new training", "t"]
    assert [option(stage, "config_file") for stage in plan] == [
        "['bundles/b/configs/a.yaml','bundles/b/configs/p.yaml','bundles/b/configs/c.yaml']",
        "['bundles/b/configs/a.yaml','bundles/b/configs/c.yaml']",
        "bundles/b/configs/b.yaml",
    ]
    assert [option(stage, "ckpt_dir") for stage in plan[:2]] == ["O/plain", "O/new"]
    assert [stage.renews for stage in plan] == [None, None, Path("O/more")]


def test_nested_settings_are_filled_and_keep_their_spaces(folder: Path) -> None:
    scenario = {"stages": {"more": {"sets": {"B": "{output}/b", "C": "{data}"}, "sizes": [[1, 2.5], True]}}}
    places = {**PLACES, "output": "my folder, here"}
    *_, stage = stages(COMPARED, folder, places=places, scenario=scenario, overrides={})
    assert option(stage, "sets") == "{'B':'my folder, here/b','C':'D'}"
    assert option(stage, "sizes") == "[[1,2.5],True]"


def test_compared_methods_are_ranked_by_their_mean_and_shown_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of a, b, c in set B: 0.5, 0.6, 0.45; the case of the other set is the worst, and not asked for."""
    shown: list[Case] = []

    def remember(cases: list[Case], path: Path, *, title: str) -> Path:
        shown.extend(cases)
        return path

    monkeypatch.setattr("tools.demo.cli.overview", remember)
    scores = {"plain": (0.1, 0.4, 0.45), "new": (0.9, 0.8, 0.45)}
    for name, values in scores.items():
        (tmp_path / name).mkdir()
        rows = [f"{case},B,{value}" for case, value in zip("abc", values, strict=True)]
        (tmp_path / name / "metrics.csv").write_text("\n".join(["case,set,dice", "d,A,0.0", *rows, ""]))
        for case in "abc":
            (tmp_path / name / f"B_{case}.nii.gz").touch()
    (tmp_path / "scan.nrrd").touch()
    places = {**PLACES, "output": str(tmp_path)}
    files = {
        "where": {"set": "B"},
        "image": "{output}/scan.*",
        "reference": "{output}/scan.*",
        "prediction": "{output}/{variant}/{set}_{case}.nii.gz",
        "maps": {"spread": "{output}/plain/{set}_{case}.nii.gz"},
    }
    recipe = {**COMPARED, "files": files, "figures": ["{output}/more.png"]}
    metrics = collect(recipe, places)
    assert [(row["method"], row["case"]) for row in metrics] == [(name, case) for name in scores for case in "dabc"]
    written = write_results(metrics, recipe, places=places, title="t")
    assert [case.name for case in shown] == ["median case, a", "worst case, c"]
    assert shown[0].predictions == {name: tmp_path / name / "B_a.nii.gz" for name in scores}
    assert shown[1].maps == {"spread": tmp_path / "plain/B_c.nii.gz"}
    assert written == [tmp_path / name for name in ("metrics.csv", "overview.png", "more.png")]
    assert read_metrics(written[0]) == metrics
