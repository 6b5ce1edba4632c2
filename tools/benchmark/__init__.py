"""Benchmark of the bundles: equal results first, then time and memory.

A bundle registers its workloads in `tools/per_bundle/<bundle>/benchmark.py`, as
`def benchmark_cases(device) -> list[BenchmarkCase]`.
"""

from tools.benchmark.case import BenchmarkCase, Variant
from tools.benchmark.cli import benchmark
from tools.benchmark.measurement import measure

__all__ = ["BenchmarkCase", "Variant", "benchmark", "measure"]
