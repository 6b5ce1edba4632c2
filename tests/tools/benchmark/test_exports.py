"""The latency of networks and their exports: all ways agree, and the cards say what was measured."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.conftest import NAMES, each_bundle
from tests.support.exports import export_settings
from tools import REPO
from tools.benchmark import BenchmarkCase, Variant, cli
from tools.benchmark.card import WAYS, card_table
from tools.benchmark.exports import export, probabilities
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
FIGURES = {"cpu_seconds": 12.34, "median": 0.5678, "peak_bytes": 3 * 2**20}
RECORD: dict[str, Any] = {
    "device": {"type": "cpu", "name": "Abacus"},
    "threads": 1,
    "cases": [
        {
            "case": "export",
            "unit": "probabilities for 1x2 values",
            "invalid": "",
            "parity": {"onnxruntime": {"deviation": 0.00123}},
            "variants": {"eager": FIGURES, "onnxruntime": FIGURES | {"cpu_seconds": 0.0456, "peak_bytes": None}},
        }
    ],
}


def case(bundle: str, device: torch.device = CPU) -> BenchmarkCase:
    activation = torch.sigmoid if one_channel(bundle) else probabilities
    shape = tuple(export_settings(bundle)["latency"])
    return export(REPO / "bundles" / bundle, device, shape=shape, activation=activation)


def one_channel(bundle: str) -> bool:
    """Whether the network answers with one logit a voxel."""
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    return bool(metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 1)


@each_bundle
def test_ways_agree(bundle: str) -> None:
    found = case(bundle)
    assert set(found.variants) == {"eager", "torchscript", "onnxruntime"}
    answers = {name: snapshot(variant.prepare()()) for name, variant in found.variants.items()}
    total = answers["eager"]["/probabilities"].sum(1)
    assert bool((total - 1).abs().max() < 1e-5) is not one_channel(bundle)
    for name, variant in found.variants.items():
        assert compare(answers[name], answers["eager"], atol=variant.atol, rtol=variant.rtol).agrees
        assert answers[name]["/probabilities"].std() > 1e-3


def test_a_gpu_has_further_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, gpu = NAMES[0], torch.device("cuda")
    assert set(case(bundle, gpu).variants) == {"eager", "torchscript", "amp", "compile"}
    module = ModuleType("torch_tensorrt")
    module.__spec__ = ModuleSpec("torch_tensorrt", None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    variants = case(bundle, gpu).variants
    assert set(variants) == {"eager", "torchscript", "amp", "compile", "tensorrt_fp32", "tensorrt_fp16"}


def test_cases_on_request_are_measured_where_they_are_named() -> None:
    ways = {"eager": Variant(prepare=lambda: lambda: None)}
    cases = {
        "toy": [
            BenchmarkCase(name=name, unit="", variants=ways, on_request=name == "long") for name in ("long", "short")
        ]
    }
    assert [case.name for case in cli.select(cases, [])["toy"]] == ["short"]
    assert [case.name for case in cli.select(cases, ["long"])["toy"]] == ["long"]


def test_card_table() -> None:
    lines = card_table(RECORD).splitlines()
    assert lines[:3] == [
        "| Abacus, 1 thread; probabilities for 1x2 values | CPU time | peak memory | largest difference |",
        "|---|---|---|---|",
        "| PyTorch | 12.3 s | 3 MiB | |",
    ]
    assert "| onnxruntime | 45.6 ms | | 0.001 |" in lines
    assert "| TensorRT, fp16 | not measured | | |" in lines
    assert len(lines) == 2 + len(WAYS)
    gpu = {**RECORD, "device": {"type": "cuda", "name": "Abacus"}, "threads": 2}
    assert "Abacus, 2 threads; " in card_table(gpu)
    assert "| PyTorch | 568 ms | 3 MiB | |" in card_table(gpu)


@pytest.mark.parametrize(
    "cases", [[], [{"case": "start_up", "invalid": ""}], [{"case": "export", "invalid": "disagrees"}]]
)
def test_record_without_figures_is_an_error(cases: list[Any]) -> None:
    with pytest.raises(ValueError, match="no figures of a case `export`"):
        card_table({**RECORD, "cases": cases})


@each_bundle
def test_latency_in_the_card_is_that_of_its_record(bundle: str) -> None:
    """Of this bundle's network, on one thread, with the arithmetic of the size that the benchmark registers."""
    docs = REPO / "bundles" / bundle / "docs"
    record = json.loads((docs / "results_latency.json").read_text(encoding="utf-8"))
    (found,) = record["cases"]
    registered = {case.name: case for case in cli.collect(bundle, CPU)[bundle]}["export"]
    assert (found["bundle"], found["unit"], record["threads"]) == (bundle, registered.unit, 1)
    assert set(found["variants"]) == {"eager", "torchscript", "onnxruntime"}
    assert f"{card_table(record)}\n" in (docs / "details.md").read_text(encoding="utf-8")
