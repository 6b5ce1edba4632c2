"""Meters for time, peak memory, floating-point operations and the arithmetic peak of a device."""

from __future__ import annotations

import ctypes
import functools
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import conv3d
from torch.utils.flop_counter import FlopCounterMode

from tools.benchmark.row import Outputs, Work

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # options of mallopt(3)


class Time(NamedTuple):
    """Time of one unit of work in seconds: on the wall, and of all cores together, child processes included."""

    wall: float
    cpu: float


def timed(work: Work, device: torch.device) -> Time:
    """Time one unit of work, until the device has finished it."""
    _synchronize(device)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    work()
    _synchronize(device)
    return Time(time.perf_counter() - wall, _cpu_seconds() - cpu)


def counted(work: Work) -> tuple[Outputs, int]:
    """Do one unit of work, return its outputs and its floating-point operations.

    Matrix products, convolutions and attention count, forward and backward, two operations per multiply-add.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        outputs = work()
    return outputs, int(counter.get_total_flops())


class _NoModules(nullcontext[None]):
    """Stands in for the counter's hooks on modules, with which `autograd.grad` by a module's input fails."""

    parents = ("Global",)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype, *, threads: int) -> float:
    """Measure the best rate of a large matrix product and a wide convolution: the floor under all arithmetic.

    On a CPU they come from different libraries, either of which may be the faster. On CUDA, float32 products may use
    TF32 where the process lets convolutions do so.

    Args:
        device: Where to measure.
        dtype: Type of the matrices.
        threads: Current number of CPU threads; a key of the cache.

    Returns:
        Floating-point operations per second, each the best of at least three units and one second.
    """
    del threads
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.rand(2, size, size, dtype=dtype, device=device)
    volume = torch.rand(1, 64, 32, 32, 32, dtype=dtype, device=device)
    kernels = torch.rand(64, 64, 5, 5, 5, dtype=dtype, device=device)
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        product = 2 * size**3 / _fastest(lambda: left @ right, device)
        convolution = 2 * kernels.numel() * 32**3 / _fastest(lambda: conv3d(volume, kernels, padding=2), device)
    finally:
        products.fp32_precision = before
    return max(product, convolution)


def _fastest(work: Work, device: torch.device) -> float:
    """Return the wall time of the fastest of at least three units and one second, after a warm-up."""
    timed(work, device)
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < 1:
        seconds.append(timed(work, device).wall)
    return min(seconds)


@contextmanager
def prompt_heap() -> Iterator[None]:
    """Let what is freed leave the process at once, so that resident memory is memory in use.

    Meanwhile glibc gives every block over 64 KiB pages of its own. Afterwards it keeps freed blocks for reuse up to
    the limits that its adaptive rule reaches by itself in a process that frees large tensors; holes that this leaves
    in the heap blur a second use a little. Without glibc nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    set_option(_M_MMAP_THRESHOLD, 2**16)
    set_option(_M_TRIM_THRESHOLD, 2**16)
    try:
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, 2**25)
        set_option(_M_TRIM_THRESHOLD, 2**26)


def restart_memory(device: torch.device) -> int | None:
    """Forget the peak memory so far and return what is in use.

    Garbage is collected and free heap pages go back to the system first, or they would be taken for memory in use, and
    their reuse would go unseen.

    Args:
        device: CUDA: what PyTorch's allocator has handed out. CPU: resident memory of this process as the Linux kernel
            counts it, so NumPy, SciPy and oneDNN are seen as well, and no peak is missed between two samples.

    Returns:
        Bytes, or `None` on a CPU whose system does not let a process reset its peak.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    except OSError:
        return None
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the largest memory in use since `restart_memory` gave a figure, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
