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
from tools.benchmark import BenchmarkCase, Variant, measure
from tools.benchmark.meters import timed
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


def work(outputs: Any, *, seconds: float = 0.0, log: list[str] | None = None, name: str = "") -> Variant:
    """A variant that sleeps, notes its name at every unit and returns the outputs."""

    def unit() -> Any:
        time.sleep(seconds)
        if log is not None:
            log.append(name)
        return outputs

    return Variant(prepare=lambda: unit)


def case(**variants: Variant) -> BenchmarkCase:
    return BenchmarkCase(name="toy", unit="one toy", variants=variants)


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


def test_timed_tells_waiting_from_computing() -> None:
    waited = timed(lambda: time.sleep(0.05), CPU)
    assert waited.wall >= 0.05
    assert waited.cpu < 0.04


def peaks_in_a_fresh_process(variants: str) -> list[float]:
    """Returns the peak memory of every one of the `variants` that a script makes, in MiB.

    In a process of its own, because the heap of this one has the holes of the other tests.
    """
    script = f"""
import numpy, torch
from tools.benchmark import BenchmarkCase, Variant, measure
{variants}
case = BenchmarkCase(name="toy", unit="", variants=variants)
for figures in measure([case], device=torch.device("cpu"), repeats=1)[0].variants.values():
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
    return Variant(prepare=prepare)

variants = {"eager": holding(40, 8), "lavish": holding(80, 100), "lean": holding(1, 40)}
""") == pytest.approx([48, 180, 41], abs=4)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU needs Linux")
def test_peak_memory_leaves_out_what_was_freed_before_the_peak() -> None:
    assert peaks_in_a_fresh_process("""
def unit():
    return [sum(int(block[0]) for block in [numpy.ones(size, numpy.uint8) for _ in range(count)])
            for count, size in ((1, 20 * 2**20), (30, 2**20), (1, 40 * 2**20))]

variants = dict.fromkeys(("eager", "same"), Variant(prepare=lambda: unit))
""") == pytest.approx([40, 40], abs=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda_leaves_other_variants_out() -> None:
    cuda = torch.device("cuda")

    def holding(state: int, transient: int) -> Variant:
        def prepare() -> Callable[[], float]:
            held = torch.ones(state, 2**18, device=cuda)
            return lambda: (torch.ones(transient, 2**18, device=cuda)[0, 0] * held[0, 0]).item()

        return Variant(prepare=prepare)

    [result] = measure([case(eager=holding(40, 8), lavish=holding(80, 100))], device=cuda, repeats=1)
    peaks = {name: (figures.peak_bytes or 0) / 2**20 for name, figures in result.variants.items()}
    assert peaks == pytest.approx({"eager": 48, "lavish": 180}, abs=1)


# Measurement


def test_variants_take_turns_after_parity_memory_and_warm_up() -> None:
    log: list[str] = []
    variants = {name: work(1.0, log=log, name=name) for name in ("eager", "fast", "other")}
    [result] = measure([case(**variants)], device=CPU, repeats=3)
    once = ["eager", "fast", "other"]
    memory = ["eager"] * 2 + ["fast"] * 2 + ["other"] * 2
    assert log == once + memory + once + once * 3
    assert all(len(figures.seconds) == 3 for figures in result.variants.values())


def test_slower_variant_has_the_larger_median_and_speed_up_follows() -> None:
    [result] = measure([case(eager=work(1.0, seconds=0.05), fast=work(1.0, seconds=0.001))], device=CPU, repeats=3)
    eager, fast = result.variants["eager"], result.variants["fast"]
    assert eager.median >= 0.05 > fast.median
    assert eager.quartiles[0] <= eager.median <= eager.quartiles[1]
    assert eager.speed_up == 1
    assert fast.speed_up == pytest.approx(eager.median / fast.median)


def test_speed_up_is_against_the_baseline_where_there_is_one() -> None:
    variants = {"eager": work(1.0, seconds=0.001), "baseline": work(1.0, seconds=0.05)}
    [result] = measure([case(**variants)], device=CPU, repeats=3)
    assert result.variants["baseline"].speed_up == 1
    assert result.variants["eager"].speed_up > 1


def test_disagreeing_case_is_invalid_and_not_timed_while_others_are() -> None:
    log: list[str] = []
    cases = [case(eager=work(1.0, log=log, name="eager"), fast=work(1.5)), case(eager=work(1.0), fast=work(1.0))]
    invalid, fine = measure(cases, device=CPU, repeats=2)
    assert invalid.invalid.startswith("fast: output / is off by up to 0.5")
    assert (invalid.parity["fast"].deviation, invalid.variants, log) == (0.5, {}, ["eager"])
    assert not fine.invalid
    assert set(fine.variants) == {"eager", "fast"}


def test_tolerance_is_the_variants_own() -> None:
    def half(atol: float) -> Variant:
        return Variant(prepare=lambda: lambda: 1.01, atol=atol, rtol=0)

    loose, tight = measure(
        [case(eager=work(1.0), half=half(0.02)), case(eager=work(1.0), half=half(0.005))], device=CPU
    )
    assert not loose.invalid
    assert tight.invalid


def test_failing_variant_makes_its_case_invalid_with_its_name_and_error() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    [result] = measure([case(eager=work(1.0), fast=Variant(prepare=lambda: fail))], device=CPU)
    assert result.invalid == "fast: RuntimeError: out of memory"


def test_every_preparation_starts_from_the_same_seed() -> None:
    def prepare() -> Callable[[], Any]:
        noise = torch.rand(4), np.random.default_rng(np.random.randint(9999)).random(4)  # noqa: NPY002
        return lambda: noise

    [result] = measure([case(eager=Variant(prepare=prepare), fast=Variant(prepare=prepare))], device=CPU, repeats=1)
    assert result.parity["fast"].deviation == 0


def test_work_without_outputs_has_neither_parity_nor_memory() -> None:
    [result] = measure([case(eager=work(None), fast=work(None))], device=CPU, repeats=1)
    assert not result.invalid
    assert [figures.peak_bytes for figures in result.variants.values()] == [None, None]


@pytest.mark.parametrize(("name", "variant", "message"), [("a b", "eager", "identifier"), ("a", "fast", "'eager'")])
def test_case_refuses_bad_name_or_missing_eager(name: str, variant: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchmarkCase(name=name, unit="", variants={variant: work(1.0)})


def test_no_repeats_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure([case(eager=work(1.0))], device=CPU, repeats=0)
