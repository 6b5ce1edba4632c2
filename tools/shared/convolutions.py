"""A convolution with PyTorch's parameters and results, which needs less time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["HalvedConv3d"]

SMALL = 20480  # channels x height x width up to which PyTorch does not call oneDNN


class HalvedConv3d(nn.Conv3d):
    """Convolution of 3 x 3 x 3, padded by 1, that takes single small volumes as a batch of two halves.

    On a CPU PyTorch 2.13 lets oneDNN have a batch, but not these, for which it needs two to four times as long by
    itself. They are the deep features of patches of 64 x 64 x 64 voxels, and their scan where it has four sequences.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns `(B, out_channels, H, W, D)` for `(B, in_channels, H, W, D)`."""
        halved = False
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            halved = _is_slow(input)  # what TorchScript must not compile stands alone under that question
        return self._in_halves(input) if halved else self._conv_forward(input, self.weight, self.bias)

    def _in_halves(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[2] // 2
        padded = functional.pad(x, (0, 0, 0, 0, 1, 1))
        halves = torch.cat([padded[:, :, : half + 2], padded[:, :, half:]])  # each with the slice beyond its end
        return torch.cat(functional.conv3d(halves, self.weight, self.bias, padding=(0, 1, 1)).chunk(2), dim=2)


def _is_slow(x: torch.Tensor) -> bool:
    """Whether PyTorch convolves `x` by itself, and halves along H are worth their overlap."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if x.device.type != "cpu" or tracing or torch.compiler.is_compiling():
        return False  # an exported graph serves volumes of all sizes
    batch, channels, height, width = x.shape[:4]
    return batch == 1 and channels * height * width <= SMALL and height >= 8 and height % 2 == 0
