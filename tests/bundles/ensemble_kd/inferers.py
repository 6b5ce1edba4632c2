"""Networks and inferers that the tests of whole-volume inference of ensemble_kd_kits_ct share."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from ensemble_kd.inferers import OrthogonalSliceInferer, ShiftedTilesInferer

both = pytest.mark.parametrize("make", [OrthogonalSliceInferer, partial(ShiftedTilesInferer, 4, shifts=2)])


class Recorder(nn.Module):
    """Logits of two classes that depend on where in its input a voxel lies; notes the batches that it gets."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.batches: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(x.clone())
        along = torch.arange(x.shape[2], dtype=x.dtype).view(1, 1, -1, *[1] * (x.ndim - 3))
        return torch.cat([x[:, :1] + along, 0 * x[:, :1]], 1).to(self.dtype or x.dtype)


class Valid(nn.Module):
    """A network without padding: receptive field of 5, three classes."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)
