"""The page about a folder of results: every bundle's own runs, and folders made by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import NamedPath, each_bundle
from tests.support.report_files import START, Page, write_cases, write_events, write_record
from tests.support.runs import copy, run
from tools.report.charts import epochs, fixed, grouped, nice_step, number, tick_label, values
from tools.report.cli import report
from tools.report.figure import colour_of
from tools.report.runs import read_folder
from tools.report.settings import duration, flat, given_ids

SCORES = "case,dice,hd95,volume\n"


@pytest.fixture(scope="module")
def evaluated(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """Results of two epochs of training and of an evaluation, in one folder."""

    @cache
    def folder(bundle: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_report")
        copy(tiny_weights(bundle), target / "models")
        run(bundle, "train", data=phantoms(bundle), folder=target, max_epochs=2, val_interval=1)
        run(bundle, "evaluate", data=phantoms(bundle), folder=target)
        return target / "eval"

    return folder


@pytest.mark.gate
@each_bundle
def test_page_of_a_run(bundle: str, evaluated: NamedPath, tmp_path: Path) -> None:
    """Curves, rows, figures and settings are those of the files; nothing is fetched from anywhere."""
    folder = evaluated(bundle)
    page = Page(report(str(folder), output=str(tmp_path / "page.html"), cases=1))
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    (training,) = read_folder(folder).trainings
    assert page.points == {
        tag: [f"{tag}, epoch {step}: {number(value)}" for step, value in curve.items()]
        for curves in grouped(training.curves).values()
        for tag, curve in curves.items()
    }
    assert list(training.curves["train_loss"]) == list(training.curves["learning_rate"]) == [1, 2]
    with (folder / "metrics.csv").open(newline="") as file:
        cases = [row["case"] for row in csv.DictReader(file)]
    assert [row[0] for row in page.rows["sortable"][1:]] == cases
    assert [row[0].partition(":")[0] for row in page.rows["runs"][1:]] == ["training", "evaluating"]
    assert ["max_epochs", "2"] in page.rows["settings"]
    assert "is not drawn" not in page.text
    assert len(page.images) == min(2, len(cases))
    for source in page.images:
        figure = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
        line = np.array([int(colour_of(1)[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.all(np.abs(figure.astype(int) - line) < 25, axis=-1).sum() > 50  # outlines of the first label


def test_scans_that_were_moved(evaluated: NamedPath, phantoms: NamedPath, tmp_path: Path) -> None:
    bundle = "vnet_atrial_mri"
    folder = copy(evaluated(bundle), tmp_path / "eval")
    (path,) = folder.glob("run_evaluating_*.json")
    text = path.read_text().replace(str(phantoms(bundle)), "/here/../gone")
    path.write_text(text)
    output = str(tmp_path / "page.html")
    page = Page(report(str(folder), output=output))
    assert not page.images
    assert "is not drawn: there is no /here/../gone/" in page.text
    assert "--data tells where the scans lie now" in page.text
    assert len(Page(report(str(folder), output=output, data=str(phantoms(bundle)))).images) == 1
    (mask,) = folder.rglob("*_atrium.*")
    mask.unlink()
    assert "there are 0 masks of it" in Page(report(str(folder), output=output, data=str(phantoms(bundle)))).text


def test_damaged_mask_is_said_and_the_others_are_drawn(tmp_path: Path) -> None:
    names = ["a", "b"]
    write_record(tmp_path, "evaluating", cases=write_cases(tmp_path, names))
    (tmp_path / "metrics.csv").write_text("\ufeffcase,dice\na,0.5\nb,0.7\n", encoding="utf-8")
    mask = tmp_path / "predictions/a/scan_seg.nii.gz"
    mask.write_bytes(mask.read_bytes()[:200])
    page = Page(report(str(tmp_path), cases=1))
    assert len(page.images) == 1
    assert "worst: a is not drawn" in page.text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_record(tmp_path / "record", "training")
    write_events(tmp_path / "curves", {"train_loss": [(1, 0.5)]})
    (tmp_path / "table").mkdir()
    (tmp_path / "table/metrics.csv").write_text(SCORES + "a,0.5,3,20\n")
    said = {name: Page(report(str(tmp_path / name))).text for name in ("record", "curves", "table")}
    nothing = {
        "curves": "No training has logged curves here.",
        "table": "Nothing has been evaluated here.",
        "record": "No run has left a record here",
    }
    for name, text in said.items():
        assert [part for part, message in nothing.items() if message in text] == [p for p in nothing if p != name]
    assert "did not end (yet)" in said["record"]
    assert "No record of the evaluation tells where the scans are" in said["table"]


def record(**changes: object) -> str:
    started = f"2020-01-01T10:00:00{'+00:00' if changes else ''}"
    return json.dumps({"run_id": "training", "started": started, "config": {}, **changes})


def overwrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no run has left anything here"),
        (overwrite("metrics.csv", "name,dice\na,0.5\n"), r"metrics.csv: has no column case, it has name, dice"),
        (
            lambda folder: (folder / "metrics.csv").write_bytes(b"case,dice\nM\xfcller,0.5\n"),
            "metrics.csv: is no CSV .* UTF-8",
        ),
        (overwrite("metrics.csv", "case,dice\na\n"), r"metrics.csv: row 1 has not as many values as there"),
        (overwrite("run_training_1_1.json", "{"), r"run_training_1_1.json: no record of a run"),
        (overwrite("run_training_1_1.json", '{"run_id": "x", "started": "2020-01-01"}'), "no record of a run .*config"),
        (overwrite("run_training_1_1.json", "[]"), "run_training_1_1.json: no record of a run"),
        (overwrite("run_training_1_1.json", record()), "run_training_1_1.json: no record of a run .*has no zone"),
        (overwrite("run_training_1_1.json", record(cases=[1])), "run_training_1_1.json: no record .*a case is no dict"),
        (
            overwrite("run_training_1_1.json", record(bundle="x")),
            "run_training_1_1.json: no record .*bundle is no dict",
        ),
        (overwrite("run_training_1_1.json", record(paths=[])), "run_training_1_1.json: no record .*paths is no dict"),
        (overwrite("run_training_1_1.json", record(seconds="x")), "run_training_1_1.json: no record of a run"),
    ],
)
def test_folder_that_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        report(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        report(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        report(str(tmp_path), data=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="--cases must not be negative, got -1"):
        report(str(tmp_path), cases=-1)


def test_text_of_files_is_no_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=//x>"
    (tmp_path / "metrics.csv").write_text(f'case,dice,"<b>{evil}"\n"{evil}",0.5,1\n')
    write_events(tmp_path, {f"loss/{evil}": [(1, 0.5)]})
    given = {evil: evil, "run_name": evil}
    write_record(tmp_path, "evaluating", command=evil, versions={evil: evil}, config=given, cases=[{"case": evil}])
    text = report(str(tmp_path)).read_text()
    page = Page(tmp_path / "report.html")
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert page.text.count(evil) > 8
    assert [evil, evil] in page.rows["settings"]


def test_trainings_in_one_folder(tmp_path: Path) -> None:
    """Two stages, the second stopped in its third epoch and resumed: the epoch that it had logged is replaced."""
    locator = {"weights": "/m/locator.pt", "state_file": "/m/locator_state.pt"}
    write_record(tmp_path, "training", time=START, paths=locator)
    write_events(tmp_path, {"train_loss": [(1, 3.0), (2, 2.0)]}, time=START)
    for time, curve in ((START + 50, [(1, 9.0), (2, 8.0), (3, 7.0)]), (START + 100, [(3, 6.0), (4, 5.0)])):
        write_record(tmp_path, "training", time=time, paths={"weights": "/m/model.pt", "state_file": "/m/state.pt"})
        write_events(tmp_path, {"train_loss": curve, "val_dice": curve[-1:]}, time=time)
    write_events(tmp_path, {"train_loss": [(1, 1.0)]}, time=START + 200)
    first, second, third = read_folder(tmp_path).trainings
    assert (first.title, first.curves) == ("training: locator", {"train_loss": {1: 3.0, 2: 2.0}})
    assert second.title == "training: model"
    assert second.curves == {"train_loss": {1: 9.0, 2: 8.0, 3: 6.0, 4: 5.0}, "val_dice": {3: 7.0, 4: 5.0}}
    assert (third.title, third.curves) == ("training: model (2)", {"train_loss": {1: 1.0}})


def test_trainings_side_by_side_in_one_folder(tmp_path: Path) -> None:
    """Values go to the training whose process wrote them."""
    for process in (101, 102):
        paths = {"weights": f"/m/{process}.pt", "state_file": f"/m/{process}_state.pt"}
        write_record(tmp_path, "training", time=START + process, process=process, paths=paths)
        write_events(tmp_path / "new", {"train_loss": [(1, process), (2, process / 2)]}, time=START + 400 - process)
        (events,) = (tmp_path / "new").iterdir()
        events.rename(tmp_path / f"events.out.tfevents.1.some.host.{process}.0")
    second, first = read_folder(tmp_path).trainings  # the earliest value first
    assert (first.title, first.curves) == ("training: 101", {"train_loss": {1: 101, 2: 50.5}})
    assert (second.title, second.curves) == ("training: 102", {"train_loss": {1: 102, 2: 51}})


def test_summary_of_groups(tmp_path: Path) -> None:
    rows = ["A,a,0.5,4,10", "A,b,0.7,nan,30", "A,c,0.9,2,", "B,a,0.25,8,20"]
    (tmp_path / "metrics.csv").write_text("method,case,dice,hd95,volume\n" + "\n".join(rows) + "\n")
    page = Page(report(str(tmp_path)))
    assert page.rows["summary"] == [
        ["method", "score", "cases", "mean", "SD", "median", "worst"],
        ["A", "dice", "3", "0.700", "0.200", "0.700", "0.500"],
        ["A", "hd95", "2 of 3", "3.00", "1.41", "3.00", "4.00"],
        ["A", "volume", "2 of 3", "20.00", "14.14", "20.00", "–"],
        ["B", "dice", "1", "0.250", "–", "0.250", "0.250"],
        ["B", "hd95", "1", "8.00", "–", "8.00", "8.00"],
        ["B", "volume", "1", "20.00", "–", "20.00", "–"],
    ]


def test_masks_of_namesakes_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    from tools.report.figures import _predictions

    for folder in ("p1/site", "p2/site"):
        (tmp_path / "predictions" / folder).mkdir(parents=True)
        (tmp_path / "predictions" / folder / "scan_seg.nii.gz").touch()
    for name in ("scan_2_seg.nii.gz", "scan_unc_spread.nii.gz", "scan_probabilities.nii.gz"):
        (tmp_path / "predictions/p2/site" / name).touch()
    found = _predictions(tmp_path, image=Path("/data/p2/site/scan.nii.gz"), case="p2")
    assert found == tmp_path / "predictions/p2/site/scan_seg.nii.gz"
    with pytest.raises(ValueError, match="there are 2 masks"):
        _predictions(tmp_path, image=Path("/data/p3/site/scan.nrrd"), case="p3")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.81, 0.89, [0.8, 0.82, 0.84, 0.86, 0.88, 0.9]),
        (-1.7, -1.1, [-1.8, -1.6, -1.4, -1.2, -1.0]),
        (0.001, 0.001, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (3, 1e4, [0, 2000, 4000, 6000, 8000, 10000]),
    ],
)
def test_ticks_of_values(low: float, high: float, ticks: list[float]) -> None:
    axis = values(low, high)
    assert axis.ticks == pytest.approx(ticks)
    assert 0 <= axis.share(low) <= axis.share(high) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 1, [1]), (1, 6, [1, 2, 3, 4, 5, 6]), (1, 20, [1, 5, 10, 15, 20]), (1, 500, [1, 100, 200, 300, 400, 500])],
)
def test_ticks_of_epochs(low: int, high: int, ticks: list[int]) -> None:
    assert epochs(low, high).ticks == ticks


def test_numbers() -> None:
    assert [nice_step(value) for value in (0, 0.7, 1, 1.01, 3, 0.0021)] == [1, 1, 1, 2, 5, 0.005]
    assert [number(value) for value in (0, 0.12345, 123.456, -2.5, 1e-5, 2.5e7, 100)] == [
        *("0", "0.1235", "123.5", "−2.5", "1e−5", "2.5e7", "100")
    ]
    assert [fixed(0.12345, 1), fixed(-12.3456, 99), fixed(12.3456, 200), fixed(5.4, 2e4)] == [
        *("0.123", "−12.35", "12.3", "5")
    ]
    assert [tick_label(value, step=2e-5) for value in (0.6931, 0.69312, 0)] == ["0.69310", "0.69312", "0"]
    assert [tick_label(value, step=5) for value in (-5, 10)] == ["−5", "10"]
    assert [duration(seconds) for seconds in (4.21, 59.96, 61, 3599, 7320)] == [
        *("4.2 s", "60.0 s", "1 min 01 s", "59 min 59 s", "2 h 02 min")
    ]


def test_settings_are_flat_and_known() -> None:
    config = {"a": {"b": [1, 2], "c": [{"d": None}]}, "e": {}, "name": "$@dir + '/x_' + @a::b + @who + '.pt'"}
    assert list(flat(config)) == [("a::b", "[1, 2]"), ("a::c::0::d", "null"), ("e", "{}"), ("name", config["name"])]
    assert given_ids("python -m x run --a#b '[1, 2]' --c=3 --d") == {"a::b", "c", "d"}
    assert given_ids("an 'open quote") == set()


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(SCORES + "a,0.5,3,20\n")
    command = [sys.executable, "-m", "tools", "report"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr.startswith(f"{tmp_path / 'report.html'}: ")
    failed = subprocess.run([*command, str(tmp_path / "x")], capture_output=True, text=True, timeout=600, check=False)
    assert failed.returncode == 1
    assert failed.stderr == f"python -m tools report: {tmp_path / 'x'}: no such folder\n"


def test_copy_of_a_table_is_shown_once(tmp_path: Path) -> None:
    write_record(tmp_path / "evaluation", "evaluating")
    for name in ("metrics.csv", "evaluation/metrics.csv"):
        (tmp_path / name).write_text(SCORES + "a,0.5,3,20\n")
    (table,) = read_folder(tmp_path).tables
    assert table.path == tmp_path / "evaluation/metrics.csv"


def test_record_is_told_from_other_json(tmp_path: Path) -> None:
    """Records of MLflow's copies are not read twice."""
    path = write_record(tmp_path, "training")
    write_record(tmp_path / "mlruns/1", "training")
    assert [record.path for record in read_folder(tmp_path).records] == [path]
    assert json.loads(path.read_text())["run_id"] == "training"
