"""What a bundle registers: a benchmark case per workload, a variant per way of doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

#: Tensors, arrays or numbers, nested in mappings and sequences; `None` for work done in a process of its own.
Outputs: TypeAlias = Any
#: Does one unit of work.
Work: TypeAlias = Callable[[], Outputs]
#: A foreign implementation: takes the case's state dict, its inputs and the device, returns the work.
Baseline: TypeAlias = Callable[[Mapping[str, torch.Tensor], Any, torch.device], Work]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of doing a case's work.

    Attributes:
        prepare: Builds network, optimizer, cached inputs ... and returns the work. It is called three times with the
            same seed, for parity, memory and time, and must start from the same state each time. Backend flags (TF32,
            cuDNN autotuning, thread counts) belong inside the work, in a `with` block: variants run in turns, so a flag
            left set would leak into the others.
        atol: Absolute tolerance of the outputs against those of the variant `eager`.
        rtol: Relative tolerance, as a share of the magnitude of the output of `eager`.
    """

    prepare: Callable[[], Work]
    atol: float = 1e-5
    rtol: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """One workload, the ways of doing it, and what a foreign implementation needs to do the same.

    A case whose work returns `None` does it in a process of its own (start-up time): no outputs to compare, and the
    memory of that process is not seen.

    Attributes:
        name: Identifier, also the name of the function that a baseline file may define.
        unit: What one unit of work is, for the reader of the table ("step on 2 x 112x112x80 voxels").
        variants: Ways of doing the work by name; `eager` is the yardstick of parity, and of speed without a baseline.
        state_dict: Makes the weights under the key names of the method's reference code, for a baseline.
        inputs: Makes the inputs of the variants, for a baseline. It is called in every preparation: large inputs are
            cached, so that no variant is charged with their memory.
        atol: Absolute tolerance of the outputs of a baseline against those of `eager`.
        rtol: Relative tolerance of a baseline.
        on_request: Whether the case, a long one, is measured only where it is named.

    Raises:
        ValueError: If the name is no identifier or there is no variant `eager`.
    """

    name: str
    unit: str
    variants: Mapping[str, Variant]
    state_dict: Callable[[], Mapping[str, torch.Tensor]] = dict
    inputs: Callable[[], Any] = dict
    atol: float = 1e-5
    rtol: float = 1e-4
    on_request: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"case '{self.name}': the name must be a Python identifier")
        if "eager" not in self.variants:
            raise ValueError(f"case '{self.name}': there must be a variant 'eager', got {sorted(self.variants)}")
