"""The command `benchmark`: record, table, baseline files, errors."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tools.benchmark import BenchmarkCase, Variant, benchmark, cli

CPU = torch.device("cpu")
BASELINE = """
import torch

def double(state_dict, inputs, device):
    weight = state_dict["weight"].to(device)
    return lambda: {"sum": inputs + weight * inputs}
"""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Registers cases for a bundle `toy`, as `tools/per_bundle/toy/benchmark.py` would."""

    def register(*cases: BenchmarkCase) -> None:
        recipe = ModuleType("tools.per_bundle.toy.benchmark")
        recipe.benchmark_cases = lambda device: list(cases)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, recipe.__name__, recipe)
        monkeypatch.setattr(cli, "BUNDLES", [tmp_path / "toy"])
        monkeypatch.syspath_prepend(str(tmp_path / "toy"))

    return register


@pytest.fixture
def double() -> BenchmarkCase:
    """Doubles three numbers; the state dict holds the factor's excess over one, here 1."""
    inputs = torch.tensor([1.0, 2.0, 3.0])
    eager = Variant(prepare=lambda: lambda: {"sum": inputs * 2})
    return BenchmarkCase(
        name="double",
        unit="3 numbers",
        variants={"eager": eager},
        state_dict=lambda: {"weight": torch.ones(1)},
        inputs=lambda: inputs,
    )


@pytest.mark.gate
def test_record_and_table(
    registered: Callable[..., None], double: BenchmarkCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(double, replace(double, name="triple"))
    (tmp_path / "baseline.py").write_text(BASELINE)
    target = tmp_path / "new" / "record.json"
    benchmark("toy", cases="double", json=str(target), baseline=str(tmp_path / "baseline.py"), repeats=2)
    record = json.loads(target.read_text())
    assert {"command", "date", "commit", "cpu", "threads", "device"} < set(record)
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "monai", "numpy"} < set(record["versions"])
    [entry] = record["cases"]
    assert (entry["bundle"], entry["case"], entry["unit"], entry["invalid"]) == ("toy", "double", "3 numbers", "")
    assert entry["parity"]["baseline"]["deviation"] == 0
    assert set(entry["variants"]) == {"eager", "baseline"}
    assert len(entry["variants"]["baseline"]["seconds"]) == 2
    assert [path.name for path in target.parent.iterdir()] == ["record.json"]
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("double ")] == [
        ["double", "eager"],
        ["double", "baseline"],
    ]


def test_disagreeing_baseline_invalidates_the_case_and_fails_the_command(
    registered: Callable[..., None], double: BenchmarkCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(double)
    (tmp_path / "wrong.py").write_text(BASELINE.replace("weight * inputs", "1.1 * inputs"))
    target = tmp_path / "record.json"
    with pytest.raises(SystemExit) as ending:
        benchmark("toy", json=str(target), baseline=str(tmp_path / "wrong.py"))
    assert ending.value.code == 1
    [entry] = json.loads(target.read_text())["cases"]
    assert entry["variants"] == {}
    assert entry["parity"]["baseline"]["deviation"] == pytest.approx(0.3)
    assert "double is INVALID: baseline: output /sum is off by up to 0.3" in capsys.readouterr().out


def test_unknown_case_and_bundle_are_errors_that_list_the_known_ones(
    registered: Callable[..., None], double: BenchmarkCase
) -> None:
    registered(double, replace(double, name="triple"))
    with pytest.raises(ValueError, match="unknown cases: tripel; there are: double, triple"):
        benchmark(cases=("double", "tripel"))
    with pytest.raises(ValueError, match="'tow' is unknown, there are: toy"):
        benchmark("tow")


def test_bundle_without_cases_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "BUNDLES", [tmp_path / "bare"])
    monkeypatch.syspath_prepend(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match=r"bare: registers no cases, tools/per_bundle/bare/benchmark.py is missing"):
        cli.collect(None, CPU)


def test_case_registered_twice_is_an_error(registered: Callable[..., None], double: BenchmarkCase) -> None:
    registered(double, double)
    with pytest.raises(ValueError, match="twice"):
        cli.collect("toy", CPU)


def test_baseline_must_exist_define_a_case_and_serve_one_bundle(double: BenchmarkCase, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.py"):
        cli.attach({"toy": [double]}, tmp_path / "none.py", device=CPU)
    (tmp_path / "other.py").write_text(BASELINE.replace("def double", "def duble"))
    with pytest.raises(ValueError, match=r"other.py: defines none of the cases double"):
        cli.attach({"toy": [double]}, tmp_path / "other.py", device=CPU)
    with pytest.raises(ValueError, match="one bundle"):
        cli.attach({"toy": [double], "tow": [double]}, tmp_path / "other.py", device=CPU)


def test_unknown_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="'tpu': choose cpu or cuda"):
        benchmark(device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        benchmark(device="cuda")


@pytest.mark.gate
def test_failed_write_leaves_the_old_record(
    registered: Callable[..., None], double: BenchmarkCase, tmp_path: Path
) -> None:
    target = tmp_path / "record.json"
    target.write_text("old")
    registered(BenchmarkCase(name="odd", unit=float("nan"), variants=double.variants))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON compliant"):
        benchmark("toy", json=str(target), repeats=1)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert target.read_text() == "old"
