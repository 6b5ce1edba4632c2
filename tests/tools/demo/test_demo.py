import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from tests.conftest import each_bundle, recipe
from tools import BUNDLES, REPO
from tools.demo.cli import demo, run, write_results
from tools.demo.data import fingerprint, link_cases, prepare_data
from tools.demo.stages import Stage, of_variant, stages
from tools.demo.tables import read_metrics
from tools.report.figure import Case

RECIPES = {folder: REPO / "tools/per_bundle" / folder.name / "demo.yaml" for folder in BUNDLES}
DEMOS = [pytest.param(folder, id=folder.name) for folder, file in RECIPES.items() if file.is_file()]
PLACES = {
    "data": "D",
    "split": "S.json",
    "held_out": "U",
    "held_out_split": "V.json",
    "unlabelled": "L",
    "output": "O",
}


def recipe_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPES[folder].read_text())
    return content


def option(stage: Stage, name: str) -> str:
    return stage.command[stage.command.index(f"--{name}") + 1]


@pytest.mark.parametrize("folder", DEMOS)
@pytest.mark.parametrize("scenario", ["phantoms", "data"])
def test_commands_name_existing_configs_and_ids_and_filled_places(folder: Path, scenario: str) -> None:
    recipe = recipe_of(folder)
    for stage in stages(recipe, folder, places=PLACES, scenario=recipe[scenario], overrides={}):
        assert stage.command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
        files = yaml.safe_load(option(stage, "config_file"))
        texts = [(REPO / file).read_text() for file in ([files] if isinstance(files, str) else files)]
        assert any(f"\n{stage.command[4]}:" in text for text in texts)
        assert not any(re.search(r"{\w+}", word) for word in [*stage.command, stage.title])


def test_settings_of_the_user_win_and_reach_every_command_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "stages": [
            {
                "name": "one",
                "title": "t",
                "run": "training",
                "config": ["a.yaml"],
                "settings": {"dataset_dir": "{data}"},
            },
            {"name": "two", "title": "t", "run": "r", "config": ["a.yaml", "b.yaml"], "settings": {"x": "{output}/x"}},
        ]
    }
    scenario = {"config": ["c.yaml"], "settings": {"size": [2, 2.5], "epochs": 3}, "stages": {"two": {"epochs": 4}}}
    monkeypatch.chdir(tmp_path)
    folder = Path.cwd() / "bundles/b"
    (folder / "configs").mkdir(parents=True)
    for name, keys in {"a": ["dataset_dir", "size", "epochs"], "b": ["+x", "on::off"], "c": ["size"]}.items():
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(dict.fromkeys(keys)))
    one, two = stages(recipe, folder, places=PLACES, scenario=scenario, overrides={"size": [1, 1], "on": True})
    assert one.command[4:] == [
        "training", "--config_file", "['bundles/b/configs/a.yaml','bundles/b/configs/c.yaml']",
        "--dataset_dir", "D", "--size", "[1,1]", "--epochs", "3",
    ]  # fmt: skip
    assert (option(two, "epochs"), option(two, "x"), option(two, "on")) == ("4", "O/x", "True")
    assert """ --config_file "['bundles/b/configs/a.yaml',""" in two.shown()


@pytest.mark.parametrize("folder", DEMOS)
@pytest.mark.parametrize("scenario", ["phantoms", "data"])
def test_learning_rate_of_the_user_reaches_every_training(folder: Path, scenario: str) -> None:
    recipe = recipe_of(folder)
    plan = stages(recipe, folder, places=PLACES, scenario=recipe[scenario], overrides={"learning_rate": 0.125})
    trainings = [stage for stage in plan if stage.command[4] == "training"]
    assert trainings
    for stage in trainings:
        files = yaml.safe_load(option(stage, "config_file"))
        parser = ConfigParser()
        parser.read_config([str(REPO / file) for file in ([files] if isinstance(files, str) else files)])
        pairs = zip(stage.command[7::2], stage.command[8::2], strict=True)
        parser.update({name.removeprefix("--"): yaml.safe_load(value) for name, value in pairs})
        assert parser.get_parsed_content("optimizer::lr") == 0.125, stage.title


def test_stage_is_left_out_where_the_settings_say_so() -> None:
    folder = next(folder for folder in BUNDLES if folder.name == "vnet_atrial_mri")
    recipe = recipe_of(folder)
    every, three = (
        stages(recipe, folder, places=PLACES, scenario=recipe["data"], overrides=o) for o in ({}, {"locate": False})
    )
    assert [stage.title for stage in every[1:]] == [stage.title for stage in three]
    assert all(option(stage, "locate") == "False" for stage in three[1:])
    assert "--locate" not in three[0].command


def python(code: str, title: str = "a step") -> Stage:
    return Stage(title, [sys.executable, "-c", code])


def test_failure_names_the_stage_and_its_command_and_stops(tmp_path: Path) -> None:
    late = tmp_path / "late"
    plan = [python("1"), python("raise SystemExit(3)", "the second"), python(f"open({str(late)!r}, 'w')")]
    with pytest.raises(SystemExit) as caught:
        run(plan, tmp_path / "progress.json", version="1")
    assert "Stage 2 of 3 (the second) failed with exit code 3" in str(caught.value)
    assert str(caught.value).endswith(plan[1].shown())
    assert not late.exists()


def test_interrupted_plan_continues_and_a_finished_or_changed_one_starts_again(tmp_path: Path) -> None:
    trace, gate, progress = tmp_path / "trace", tmp_path / "gate", tmp_path / "progress.json"

    def write(letter: str) -> Stage:
        return python(f"open({str(trace)!r}, 'a').write({letter!r})")

    door = python(f"import os, sys; sys.exit(not os.path.exists({str(gate)!r}))")
    plan = [write("a"), door, write("b")]
    with pytest.raises(SystemExit):
        run(plan, progress, version="1")
    with pytest.raises(SystemExit):
        run(plan, progress, version="1")
    assert trace.read_text() == "a"
    with pytest.raises(SystemExit):
        run([write("c"), *plan[1:]], progress, version="1")
    assert trace.read_text() == "ac"
    with pytest.raises(SystemExit):
        run([write("c"), *plan[1:]], progress, version="2")
    assert trace.read_text() == "acc"
    gate.touch()
    run(plan, progress, version="2")
    assert trace.read_text() == "accab"
    run(plan, progress, version="2")
    assert trace.read_text() == "accab"
    progress.unlink()
    run(plan, progress, version="2")
    assert trace.read_text() == "accabab"


def test_a_demo_that_died_while_it_drew_goes_on_with_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, full = tmp_path / "trace", [True]
    recipe: dict[str, Any] = {"data": {"title": "t"}, "stages": [], "legend": ""}

    def draw(*args: Any, **options: Any) -> list[Path]:
        if full.pop():
            raise OSError(28, "No space left on device")
        return []

    plan = [python(f"open({str(trace)!r}, 'a').write('trained')")]
    stubs: dict[str, Any] = {
        "_recipe": lambda _: (tmp_path, recipe),
        "prepare_data": lambda *args, **options: {},
        "stages": lambda *args, **options: plan,
        "collect": lambda *args: [{"case": "a", "dice": "1"}],
        "write_results": draw,
        "output_bundle": lambda *args, **options: tmp_path,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(f"tools.demo.cli.{name}", stub)
    full[:] = [False, False, True]
    with pytest.raises(OSError, match="No space left"):
        demo("b", data="d", output=str(tmp_path / "out"))
    demo("b", data="d", output=str(tmp_path / "out"))
    assert trace.read_text() == "trained"
    demo("b", data="d", output=str(tmp_path / "out"))
    assert trace.read_text() == "trainedtrained"


def test_training_states_are_set_aside_where_a_plan_starts_again(tmp_path: Path) -> None:
    """Of the plan's own folders of weights alone: another training may lie beside them."""
    state, other = (tmp_path / folder / "training_state.pt" for folder in ("models", "models/mine"))
    other.parent.mkdir(parents=True)
    other.touch()
    train = python(f"open({str(state)!r}, 'w')")
    train.command.extend(["--ckpt_dir", str(state.parent)])
    fails = python("raise SystemExit(1)")
    for _ in range(2):
        with pytest.raises(SystemExit):
            run([train, fails], tmp_path / "done.json", version="1")
        assert state.exists()
    with pytest.raises(SystemExit):
        run([fails._replace(command=[*fails.command, *train.command[-2:]])], tmp_path / "done.json", version="2")
    assert not state.exists()
    assert state.with_name("training_state_previous.pt").exists()
    assert other.exists()


def test_stage_renews_its_folder(tmp_path: Path) -> None:
    old = tmp_path / "made/old"
    old.parent.mkdir()
    old.touch()
    run([python("1")], tmp_path / "progress.json", version="1")
    assert old.exists()
    run([python("1")._replace(renews=old.parent)], tmp_path / "progress.json", version="2")
    assert not old.exists()


def test_fingerprint_follows_configs_and_code_only(tmp_path: Path) -> None:
    for name in ("configs/train.yaml", "package/networks.py", "models/model.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    seen = [fingerprint(tmp_path)]
    for name in ("models/model.pt", "configs/train.yaml", "package/networks.py"):
        (tmp_path / name).write_text("changed")
        seen.append(fingerprint(tmp_path))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_links_hold_the_chosen_cases_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a/scan", "b/scan"):
        (source / name).parent.mkdir(parents=True)
        (source / name).touch()
    (source / "c.nii.gz").touch()
    link_cases(source, ["a"], target=target)
    assert (target / "a/scan").is_file()
    link_cases(source, ["b", "c"], target=target)
    assert sorted(path.name for path in target.iterdir()) == ["b", "c.nii.gz"]
    assert (source / "a/scan").is_file()


def test_own_data_are_divided_and_the_validation_cases_are_held_out(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / "data" / name).mkdir(parents=True)
    places = prepare_data("any", {}, data=str(tmp_path / "data"), output=tmp_path / "out")
    chosen = json.loads(Path(places["split"]).read_text())
    held_out = json.loads(Path(places["held_out_split"]).read_text())
    assert len(chosen["training"]) == 8
    assert held_out == {"training": [], "validation": chosen["validation"]}
    assert sorted(path.name for path in Path(places["held_out"]).iterdir()) == chosen["validation"]


def test_labels_of_a_share_of_the_training_cases_are_hidden(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / "data" / name).mkdir(parents=True)
    recipe = {"unlabelled": 0.75}
    places = prepare_data("any", recipe, data=str(tmp_path / "data"), output=tmp_path / "out")
    chosen = json.loads(Path(places["split"]).read_text())
    hidden = sorted(path.name for path in Path(places["unlabelled"]).iterdir())
    assert (len(chosen["training"]), len(chosen["validation"]), len(hidden)) == (2, 2, 6)
    assert sorted(chosen["training"] + chosen["validation"] + hidden) == list("abcdefghij")


def test_results_show_the_median_and_the_worst_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Case] = []

    def remember(cases: list[Case], path: Path, *, title: str) -> Path:
        shown.extend(cases)
        return path

    monkeypatch.setattr("tools.demo.cli.overview", remember)
    for case in "abc":
        (tmp_path / case).mkdir()
        for name in ("scan.nrrd", "mask.nii.gz", "found.nii.gz"):
            (tmp_path / case / name).touch()
    parts = {"image": "scan", "reference": "mask", "prediction": "found"}
    recipe = {
        "metrics": "{output}/run/metrics.csv",
        "files": {part: f"{{output}}/{{case}}/{stem}.*" for part, stem in parts.items()},
    }
    source = tmp_path / "run/metrics.csv"
    source.parent.mkdir()
    source.write_text("case,dice\na,0.9\nb,0.2\nc,0.5\n")
    places = {**PLACES, "output": str(tmp_path)}
    results, figure = write_results(read_metrics(source), recipe, places=places, title="t")
    assert [case.name for case in shown] == ["median case, c", "worst case, b"]
    assert shown[1][1:3] == (tmp_path / "b/scan.nrrd", tmp_path / "b/mask.nii.gz")
    assert shown[1].predictions == {"prediction": tmp_path / "b/found.nii.gz"}
    assert results.read_text() == source.read_text()
    assert figure == tmp_path / "overview.png"
    (tmp_path / "b/found.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"b/found\.\*"):
        write_results(read_metrics(source), recipe, places=places, title="t")


def test_further_test_sets_are_phantoms_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict[str, Any]] = {}

    def make(bundle: str, output: str, **options: Any) -> Path:
        made[str(Path(output).relative_to(tmp_path))] = options
        for case in "ab":
            Path(output, case).mkdir(parents=True)
        return Path(output)

    monkeypatch.setattr("tools.demo.data.phantoms", make)
    sizes = {"training": {"seed": 1}, "held_out": {"seed": 2}, "validation": 1, "test_sets": {"B": {"domain": "b"}}}
    prepare_data("any", {"phantoms": sizes}, data=None, output=tmp_path)
    assert made == {
        "phantoms/training": {"seed": 1},
        "phantoms/held_out": {"seed": 2},
        "phantoms/B": {"domain": "b"},
    }


def test_unknown_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no demo for bundle 'vnet'; there are demos for: .*vnet_atrial_mri"):
        demo("vnet", output=str(tmp_path))


def shrink(phantoms: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Makes few and small phantoms of a recipe's, and takes away the settings of stages that are no places."""
    phantoms |= {"settings": {}, "validation": 1, "training": {**sizes, "seed": 1}, "held_out": {**sizes, "seed": 2}}
    for options in (phantoms["held_out"], *phantoms.get("test_sets", {}).values()):
        options |= {**sizes, "cases": 2}
    for name, settings in phantoms["stages"].items():
        phantoms["stages"][name] = {key: value for key, value in settings.items() if "{output}" in str(value)}


def sizes_of(files: list[str], *, flows: list[dict[str, Any]]) -> dict[str, Any]:
    """The overrides of the workflow test with these config files, else with these first, else none."""
    stems = [name.removesuffix(".yaml") for name in files]
    like = [flow for flow in flows if flow["files"] == stems]
    like = like or [flow for flow in flows if flow["files"][: len(stems)] == stems]
    return dict(min(like, key=lambda flow: "variant_of" in flow)["overrides"]) if like else {}


def small_demo(bundle: str) -> dict[str, Any]:
    """The recipe of a demo with the sizes of the workflow tests and one epoch a training; places stay."""
    content, known = recipe_of(REPO / "bundles" / bundle), recipe(bundle)
    shrink(content["phantoms"], {**known["phantoms"], "cases": 5})
    for stage in content["stages"]:
        files = [str(REPO / "bundles" / bundle / "configs" / name) for name in stage["config"]]
        config = ConfigParser.load_config_files(files)
        small: dict[str, Any] = dict(known["tiny"])
        chosen: set[str] = set()  # settings of variants
        for extra in content.get("compare", {"": []}).values():
            added, settings = of_variant(extra)
            chosen.update(settings)
            small |= sizes_of([*stage["config"], *added], flows=list(known["workflows"].values()))
        small = {key: value for key, value in small.items() if "#" not in key or key.partition("#")[0] in config}
        small = {key: value for key, value in small.items() if key not in chosen}
        once = {"max_epochs": 1} if stage["run"] == "training" else {}
        stage["settings"] = small | {"device": "cpu"} | once | stage["settings"]
        assert small, f"{stage['name']}: no workflow of the tests is like it, its sizes would be those of the bundle"
    return content


@pytest.mark.gate
@each_bundle
def test_small_demo(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage finds what those before it left; table, figures, trained bundle and study folder are there."""
    folder, content, run_command = REPO / "bundles" / bundle, small_demo(bundle), subprocess.run

    def in_this_process(command: list[str], **options: Any) -> Any:
        if command[0] != sys.executable:
            return run_command(command, **options)
        try:
            return fire.Fire(monai.bundle.run, command=[*command[4:], "--logging_file", "False"])
        finally:
            set_determinism(None)

    monkeypatch.setattr("tools.demo.cli._recipe", lambda _: (folder, content))
    monkeypatch.setattr("tools.demo.cli.subprocess.run", in_this_process)
    demo(bundle, output=str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert {row.get("method", "") for row in rows} == set(content.get("compare", [""]))
    assert imread(tmp_path / "overview.png").shape[1] > 1000
    assert (tmp_path / "bundle" / bundle / "models/model.pt").is_file()
    assert any((tmp_path / "studies").iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("folder", DEMOS)
def test_demo_on_phantoms_reaches_what_its_recipe_expects(folder: Path, tmp_path: Path) -> None:
    before = os.times()
    command = [sys.executable, "-m", "tools", "demo", folder.name, "--output", str(tmp_path)]
    subprocess.run(command, cwd=REPO, check=True)
    spent = os.times()
    expected = recipe_of(folder)["phantoms"]["expected"]
    scores: dict[str, list[float]] = {}
    for row in read_metrics(tmp_path / "metrics.csv"):
        if row.get("set", "clean") == "clean":
            scores.setdefault(row.get("method", ""), []).append(float(row["dice"]))
    assert min(map(np.mean, scores.values())) >= expected["dice"]
    assert imread(tmp_path / "overview.png").shape[1] > 1000
    busy = spent.children_user - before.children_user + spent.children_system - before.children_system
    assert busy <= 2 * 60 * expected["minutes"], "of two cores"
