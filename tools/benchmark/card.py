"""The latency table of a model card, from the record of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.benchmark.report import digits, seconds
from tools.tables import markdown

WAYS = {
    "eager": "PyTorch",
    "torchscript": "TorchScript",
    "onnxruntime": "onnxruntime",
    "amp": "PyTorch with AMP, on a GPU",
    "compile": "`torch.compile`, on a GPU",
    "tensorrt_fp32": "TensorRT, fp32",
    "tensorrt_fp16": "TensorRT, fp16",
}


def card_table(record: Mapping[str, Any]) -> str:
    """Returns the Markdown table of the case `export` for a model card; variants that it lacks are not measured.

    Args:
        record: what `tools benchmark --cases export --json FILE` wrote. On a CPU the table has the processor time of a
            pass, which other processes disturb least.

    Raises:
        ValueError: If the record has no such case, or an invalid one.
    """
    case = next((case for case in record["cases"] if case["case"] == "export"), None)
    if case is None or case["invalid"]:
        raise ValueError(f"no figures of a case `export`: {case['invalid'] if case else 'it was not measured'}")
    time, key = ("time", "median") if record["device"]["type"] == "cuda" else ("CPU time", "cpu_seconds")
    threads = record["threads"]
    machine = f"{record['device']['name']}, {threads} thread{'s' * (threads > 1)}; {case['unit']}"
    lines = [(machine, time, "peak memory", "largest difference")]
    for name, way in WAYS.items():
        found = case["variants"].get(name)
        if found is None:
            lines.append((way, "not measured", "", ""))
            continue
        gap = f"{case['parity'][name]['deviation']:.1g}" if name in case["parity"] else ""
        lines.append((way, seconds(found[key]), _memory(found["peak_bytes"]), gap))
    return f"{markdown(lines[0], lines[1:])}\n"


def _memory(peak: float | None) -> str:
    return "" if peak is None else f"{digits(peak / 2**20)} MiB"
