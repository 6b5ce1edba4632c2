"""What a bundle registers: one row per workload, one setting per way of doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

#: Tensors, arrays or numbers, nested in mappings and sequences; `None` for work done in a process of its own.
Outputs: TypeAlias = Any
#: Does one unit of work.
Work: TypeAlias = Callable[[], Outputs]
#: A foreign implementation: takes the row's state dict, its inputs and the device, returns the work.
Baseline: TypeAlias = Callable[[Mapping[str, torch.Tensor], Any, torch.device], Work]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way of doing a row's work.

    Attributes:
        prepare: Builds network, optimizer, cached inputs ... and returns the work. It is called three times with the
            same seed, for parity, memory and time, and must start from the same state each time. Backend flags (TF32,
            cuDNN autotuning, thread counts) belong inside the work, in a `with` block: settings run in turns, so a flag
            left set would leak into the others.
        atol: Absolute tolerance of the outputs against those of the setting `plain`.
        rtol: Relative tolerance, as a share of the magnitude of the output of `plain`.
        dtype: Type of the bulk of the arithmetic; its largest products and convolutions set the floor.
    """

    prepare: Callable[[], Work]
    atol: float = 1e-5
    rtol: float = 1e-4
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, kw_only=True)
class Row:
    """One workload, the ways of doing it, and what a foreign implementation needs to do the same.

    A row whose work returns `None` does it in a process of its own (start-up time): no outputs to compare, and the
    memory of that process is not seen.

    Attributes:
        name: Identifier, also the name of the function that a baseline file may define.
        unit: What one unit of work is, for the reader of the table ("step on 2 x 112x112x80 voxels").
        settings: Ways of doing the work by name; `plain` is the yardstick of parity, and of speed without a baseline.
        state_dict: Makes the weights under the key names of the method's reference code, for a baseline.
        inputs: Makes the inputs of the settings, for a baseline. It is called in every preparation: large inputs are
            cached, so that no setting is charged with their memory.
        atol: Absolute tolerance of the outputs of a baseline against those of `plain`.
        rtol: Relative tolerance of a baseline.
        work: Floating-point operations of one unit. `None` counts them on `plain` (those of matrix products and
            convolutions, forward and backward); 0 marks work that is not arithmetic and has no floor.
        on_request: Whether the row, a long one, is measured only where it is named.

    Raises:
        ValueError: If the name is no identifier or there is no setting `plain`.
    """

    name: str
    unit: str
    settings: Mapping[str, Setting]
    state_dict: Callable[[], Mapping[str, torch.Tensor]] = dict
    inputs: Callable[[], Any] = dict
    atol: float = 1e-5
    rtol: float = 1e-4
    work: int | None = None
    on_request: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"row '{self.name}': the name must be a Python identifier")
        if "plain" not in self.settings:
            raise ValueError(f"row '{self.name}': there must be a setting 'plain', got {sorted(self.settings)}")
