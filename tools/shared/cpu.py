"""What the processor of this machine can do."""

from __future__ import annotations

import logging

import torch

__all__ = ["has_bfloat16"]

logger = logging.getLogger(__name__)


def has_bfloat16() -> bool:
    """Returns whether the processor has instructions for bfloat16; says so where it has none, which makes it slow."""
    found = any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    if not found:
        logger.warning("This processor has no bfloat16 instructions (AVX512-BF16, AMX), single precision is used")
    return found
