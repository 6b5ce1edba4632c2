"""Benchmark of the bundles: equal results first, then time, memory and distance to the device's floor.

A bundle registers its workloads in `tools/per_bundle/<bundle>/benchmark.py` as `def rows(device) -> list[Row]`.
"""

from tools.benchmark.cli import benchmark
from tools.benchmark.measurement import measure
from tools.benchmark.row import Row, Setting

__all__ = ["Row", "Setting", "benchmark", "measure"]
