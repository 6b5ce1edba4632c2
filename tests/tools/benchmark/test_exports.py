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
from tools.benchmark import Row, Setting, cli
from tools.benchmark.card import WAYS, card_table
from tools.benchmark.exports import export, probabilities
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
FIGURES = {"cpu_seconds": 12.34, "median": 0.5678, "peak_bytes": 3 * 2**20}
RECORD: dict[str, Any] = {
    "device": {"type": "cpu", "name": "Abacus"},
    "threads": 1,
    "rows": [
        {
            "row": "export",
            "unit": "probabilities for 1x2 values",
            "void": "",
            "parity": {"onnxruntime": {"deviation": 0.00123}},
            "settings": {"plain": FIGURES, "onnxruntime": FIGURES | {"cpu_seconds": 0.0456, "peak_bytes": None}},
        }
    ],
}


def row(bundle: str, device: torch.device = CPU) -> Row:
    activation = torch.sigmoid if one_channel(bundle) else probabilities
    shape = tuple(export_settings(bundle)["latency"])
    return export(REPO / "bundles" / bundle, device, shape=shape, activation=activation)


def one_channel(bundle: str) -> bool:
    """Whether the network answers with one logit a voxel."""
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    return bool(metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 1)


@each_bundle
def test_ways_agree(bundle: str) -> None:
    found = row(bundle)
    assert set(found.settings) == {"plain", "torchscript", "onnxruntime"}
    answers = {name: snapshot(setting.prepare()()) for name, setting in found.settings.items()}
    total = answers["plain"]["/probabilities"].sum(1)
    assert bool((total - 1).abs().max() < 1e-5) is not one_channel(bundle)
    for name, setting in found.settings.items():
        assert compare(answers[name], answers["plain"], atol=setting.atol, rtol=setting.rtol).agrees
        assert answers[name]["/probabilities"].std() > 1e-3


def test_a_gpu_has_further_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, gpu = NAMES[0], torch.device("cuda")
    assert set(row(bundle, gpu).settings) == {"plain", "torchscript", "amp", "compile"}
    module = ModuleType("torch_tensorrt")
    module.__spec__ = ModuleSpec("torch_tensorrt", None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    settings = row(bundle, gpu).settings
    assert set(settings) == {"plain", "torchscript", "amp", "compile", "tensorrt_fp32", "tensorrt_fp16"}
    assert {name for name, setting in settings.items() if setting.dtype == torch.float16} == {"amp", "tensorrt_fp16"}


def test_rows_on_request_are_measured_where_they_are_named() -> None:
    ways = {"plain": Setting(prepare=lambda: lambda: None)}
    rows = {"toy": [Row(name=name, unit="", settings=ways, on_request=name == "long") for name in ("long", "short")]}
    assert [row.name for row in cli.select(rows, [])["toy"]] == ["short"]
    assert [row.name for row in cli.select(rows, ["long"])["toy"]] == ["long"]


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


@pytest.mark.parametrize("rows", [[], [{"row": "start_up", "void": ""}], [{"row": "export", "void": "disagrees"}]])
def test_record_without_figures_is_an_error(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match="no figures of a row `export`"):
        card_table({**RECORD, "rows": rows})


@each_bundle
def test_latency_in_the_card_is_that_of_its_record(bundle: str) -> None:
    """Of this bundle's network, on one thread, with the arithmetic of the size that the benchmark registers."""
    docs = REPO / "bundles" / bundle / "docs"
    record = json.loads((docs / "results_latency.json").read_text(encoding="utf-8"))
    (found,) = record["rows"]
    registered = {row.name: row for row in cli.collect(bundle, CPU)[bundle]}["export"]
    assert (found["bundle"], found["unit"], record["threads"]) == (bundle, registered.unit, 1)
    assert set(found["settings"]) == {"plain", "torchscript", "onnxruntime"}
    assert f"{card_table(record)}\n" in (docs / "details.md").read_text(encoding="utf-8")
