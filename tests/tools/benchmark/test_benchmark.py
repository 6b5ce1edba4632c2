"""The benchmark: parity gate, meters, order of the repeats."""

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tools import REPO
from tools.benchmark import Row, Setting, measure, measurement, meters
from tools.benchmark.meters import Time, counted, peak_flops, timed
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Spares the garbage collector, which every measurement runs, the objects of all the imports."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def work(outputs: Any, *, seconds: float = 0.0, log: list[str] | None = None, name: str = "") -> Setting:
    """A setting that sleeps, notes its name at every unit and returns the outputs."""

    def unit() -> Any:
        time.sleep(seconds)
        if log is not None:
            log.append(name)
        return outputs

    return Setting(prepare=lambda: unit)


def row(**settings: Setting) -> Row:
    return Row(name="toy", unit="one toy", settings=settings, work=0)


# Parity


def test_snapshot_names_leaves_and_survives_changes_in_place() -> None:
    volume = torch.ones(2)
    copies = snapshot({"a": [volume, np.array([3, 4], dtype=np.uint8)], "b": None, "c": 1.5})
    volume.zero_()
    assert {leaf: value.tolist() for leaf, value in copies.items()} == {"/a/0": [1, 1], "/a/1": [3, 4], "/c": 1.5}
    assert {value.dtype for value in copies.values()} == {torch.float64}


@pytest.mark.parametrize(
    ("actual", "agrees", "deviation"),
    [
        ([1.0, 100.0], True, 0.0),
        ([1.0, 101.0], True, 1.0),  # limit 0.1 + 0.01 * 100 = 1.1
        ([1.0, 101.2], False, 1.2),
        ([1.2, 100.0], False, 0.2),  # limit 0.1 + 0.01 * 1 = 0.11
        ([1.0, NAN], False, None),
        ([1.0, INF], False, None),
        ([1.0], False, None),
    ],
)
def test_gate_is_absolute_plus_relative(actual: list[float], agrees: bool, deviation: float | None) -> None:
    verdict = compare(snapshot(np.array(actual)), snapshot(np.array([1.0, 100.0])), atol=0.1, rtol=0.01)
    assert verdict.agrees is agrees
    assert verdict.deviation == (None if deviation is None else pytest.approx(deviation))
    assert bool(verdict.reason) is not agrees


@pytest.mark.parametrize(("actual", "agrees"), [(INF, True), (-INF, False), (1.0, False), (NAN, False)])
def test_gate_on_infinite_reference(actual: float, agrees: bool) -> None:
    assert compare(snapshot(actual), snapshot(INF), atol=1, rtol=1).agrees is agrees


def test_nan_agrees_with_nothing() -> None:
    assert not compare(snapshot(NAN), snapshot(NAN), atol=1, rtol=1).agrees


# Meters


def test_flops_of_matrix_product_forward_and_backward() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert counted(lambda: left @ right)[1] == 2 * 3 * 5 * 7
    # The gradient of `right` alone is one more product of the same size.
    assert counted(lambda: torch.autograd.grad((left @ right).sum(), right))[1] == 2 * (2 * 3 * 5 * 7)


def test_flops_of_convolution() -> None:
    layer, image = torch.nn.Conv3d(2, 4, 3, padding=1), torch.ones(1, 2, 6, 7, 8)
    outputs, flops = counted(lambda: layer(image))
    assert outputs.shape == (1, 4, 6, 7, 8)
    assert flops == 2 * (6 * 7 * 8) * 4 * 2 * 3**3


def test_flops_of_the_gradient_by_the_input_of_a_module() -> None:
    layer, image = torch.nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert counted(lambda: torch.autograd.grad(layer(image).sum(), image))[1] == 2 * (2 * 3 * 5 * 7)


@pytest.mark.parametrize(
    ("best", "rate"), [((0.25, 1.0), 2 * 2048**3 / 0.25), ((0.5, 0.25), 2 * 64 * 64 * 5**3 * 32**3 / 0.25)]
)
def test_peak_is_that_of_the_best_product_or_convolution(
    monkeypatch: pytest.MonkeyPatch, best: tuple[float, float], rate: float
) -> None:
    seconds = iter([slow for fast in best for slow in (0.1, fast + 0.5, fast, fast + 0.5)])  # the first is warm-up
    monkeypatch.setattr(meters, "timed", lambda work, device: Time(next(seconds), 0.0))
    assert peak_flops.__wrapped__(CPU, torch.float32, threads=1) == rate


def test_floor_share_is_the_rate_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "peak_flops", lambda device, dtype, threads: {torch.float32: 1e9}[dtype])
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    [result] = measure(
        [Row(name="product", unit="3x5x7", settings={"plain": Setting(prepare=lambda: lambda: left @ right)})],
        device=CPU,
    )
    figures = result.settings["plain"]
    assert result.work == 210
    assert figures.flops_per_second == pytest.approx(210 / figures.median)
    assert figures.floor_share == pytest.approx(210 / figures.median / 1e9)


def test_timed_tells_waiting_from_computing() -> None:
    waited = timed(lambda: time.sleep(0.05), CPU)
    assert waited.wall >= 0.05
    assert waited.cpu < 0.04


def peaks_in_a_fresh_process(settings: str) -> list[float]:
    """Returns the peak memory of every one of the `settings` that a script makes, in MiB.

    In a process of its own, because the heap of this one has the holes of the other tests.
    """
    script = f"""
import numpy, torch
from tools.benchmark import Row, Setting, measure
{settings}
row = Row(name="toy", unit="", settings=settings, work=0)
for figures in measure([row], device=torch.device("cpu"), repeats=1)[0].settings.values():
    print(figures.peak_bytes / 2**20)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    return [float(line) for line in run.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU needs Linux")
def test_peak_memory_counts_own_state_and_the_peak_of_a_unit_but_no_inputs() -> None:
    assert peaks_in_a_fresh_process("""
inputs = numpy.ones(64 * 2**20, dtype=numpy.uint8)

def blocks(count):
    return [numpy.ones(2**20, dtype=numpy.uint8) for _ in range(count)]

def holding(state, transient):
    def prepare():
        held = blocks(state)
        return lambda: int(blocks(transient)[-1][0] * held[-1][0] * inputs[0])
    return Setting(prepare=prepare)

settings = {"plain": holding(40, 8), "lavish": holding(80, 100), "lean": holding(1, 40)}
""") == pytest.approx([48, 180, 41], abs=4)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU needs Linux")
def test_peak_memory_leaves_out_what_was_freed_before_the_peak() -> None:
    assert peaks_in_a_fresh_process("""
def unit():
    return [sum(int(block[0]) for block in [numpy.ones(size, numpy.uint8) for _ in range(count)])
            for count, size in ((1, 20 * 2**20), (30, 2**20), (1, 40 * 2**20))]

settings = dict.fromkeys(("plain", "same"), Setting(prepare=lambda: unit))
""") == pytest.approx([40, 40], abs=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda_leaves_other_settings_out() -> None:
    cuda = torch.device("cuda")

    def holding(state: int, transient: int) -> Setting:
        def prepare() -> Callable[[], float]:
            held = torch.ones(state, 2**18, device=cuda)
            return lambda: (torch.ones(transient, 2**18, device=cuda)[0, 0] * held[0, 0]).item()

        return Setting(prepare=prepare)

    [result] = measure([row(plain=holding(40, 8), lavish=holding(80, 100))], device=cuda, repeats=1)
    peaks = {name: (figures.peak_bytes or 0) / 2**20 for name, figures in result.settings.items()}
    assert peaks == pytest.approx({"plain": 48, "lavish": 180}, abs=1)


# Measurement


def test_settings_take_turns_after_parity_memory_and_warm_up() -> None:
    log: list[str] = []
    settings = {name: work(1.0, log=log, name=name) for name in ("plain", "fast", "other")}
    [result] = measure([row(**settings)], device=CPU, repeats=3)
    once = ["plain", "fast", "other"]
    memory = ["plain"] * 2 + ["fast"] * 2 + ["other"] * 2
    assert log == once + memory + once + once * 3
    assert all(len(figures.seconds) == 3 for figures in result.settings.values())


def test_slower_setting_has_the_larger_median_and_speed_up_follows() -> None:
    [result] = measure([row(plain=work(1.0, seconds=0.05), fast=work(1.0, seconds=0.001))], device=CPU, repeats=3)
    plain, fast = result.settings["plain"], result.settings["fast"]
    assert plain.median >= 0.05 > fast.median
    assert plain.quartiles[0] <= plain.median <= plain.quartiles[1]
    assert plain.speed_up == 1
    assert fast.speed_up == pytest.approx(plain.median / fast.median)


def test_speed_up_is_against_the_baseline_where_there_is_one() -> None:
    settings = {"plain": work(1.0, seconds=0.001), "baseline": work(1.0, seconds=0.05)}
    [result] = measure([row(**settings)], device=CPU, repeats=3)
    assert result.settings["baseline"].speed_up == 1
    assert result.settings["plain"].speed_up > 1


def test_disagreeing_row_is_void_and_not_timed_while_others_are() -> None:
    log: list[str] = []
    rows = [row(plain=work(1.0, log=log, name="plain"), fast=work(1.5)), row(plain=work(1.0), fast=work(1.0))]
    void, fine = measure(rows, device=CPU, repeats=2)
    assert void.void.startswith("fast: output / is off by up to 0.5")
    assert (void.parity["fast"].deviation, void.settings, log) == (0.5, {}, ["plain"])
    assert not fine.void
    assert set(fine.settings) == {"plain", "fast"}


def test_tolerance_is_the_settings_own() -> None:
    def half(atol: float) -> Setting:
        return Setting(prepare=lambda: lambda: 1.01, atol=atol, rtol=0)

    loose, tight = measure([row(plain=work(1.0), half=half(0.02)), row(plain=work(1.0), half=half(0.005))], device=CPU)
    assert not loose.void
    assert tight.void


def test_failing_setting_makes_its_row_void_with_its_name_and_error() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    [result] = measure([row(plain=work(1.0), fast=Setting(prepare=lambda: fail))], device=CPU)
    assert result.void == "fast: RuntimeError: out of memory"


def test_every_preparation_starts_from_the_same_seed() -> None:
    def prepare() -> Callable[[], Any]:
        noise = torch.rand(4), np.random.default_rng(np.random.randint(9999)).random(4)  # noqa: NPY002
        return lambda: noise

    [result] = measure([row(plain=Setting(prepare=prepare), fast=Setting(prepare=prepare))], device=CPU, repeats=1)
    assert result.parity["fast"].deviation == 0


def test_work_without_outputs_has_neither_parity_nor_memory() -> None:
    [result] = measure([row(plain=work(None), fast=work(None))], device=CPU, repeats=1)
    assert not result.void
    assert [figures.peak_bytes for figures in result.settings.values()] == [None, None]


@pytest.mark.parametrize(("name", "setting", "message"), [("a b", "plain", "identifier"), ("a", "fast", "'plain'")])
def test_row_refuses_bad_name_or_missing_plain(name: str, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Row(name=name, unit="", settings={setting: work(1.0)})


def test_no_repeats_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure([row(plain=work(1.0))], device=CPU, repeats=0)
