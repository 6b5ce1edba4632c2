"""Meters for time and peak memory."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from tools.benchmark.case import Work

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
    their reuse would not be measured.

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
