"""The U-Net, which returns the logits of several resolutions in training where that is wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import nn

from .shared.validation import InputError, check_sizes

__all__ = ["RELU", "UNet", "check_dims", "is_scripting"]

is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # not exported by name
RELU = ("relu", {"inplace": True})  # what it overwrites is needed by no gradient


def check_dims(spatial_dims: int) -> None:
    """Raises an `InputError` unless there are 2 or 3 spatial dimensions."""
    if spatial_dims not in (2, 3):
        raise InputError([("", "spatial_dims", f"must be 2 or 3, got {spatial_dims}")])


class _DecoderStep(nn.Module):
    """Doubles the resolution of deep features and joins them with those of the encoder.

    The `head`, if it is any, makes logits of full resolution from the result.
    """

    def __init__(self, up: nn.Module, convs: nn.Module, *, head: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.convs = convs
        self.head = head

    def forward(self, shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
        return self.convs(torch.cat([self.up(deep), shallow], dim=1))


class UNet(nn.Module):
    """U-Net with batch normalisation, in 2D or 3D.

    The reference implementation registers the heads for deep supervision in any case, and with or without them returns
    the same in evaluation.

    Args:
        spatial_dims: 2 or 3.
        out_channels: label classes, background included.
        in_channels: channels of a scan.
        channels: those of every resolution, finest first.
        deep_supervision: return the logits of three resolutions in training, those of the finest first.

    Raises:
        InputError: if `spatial_dims` is another, or there is but one resolution.
    """

    class_layers = r"decoder\.\d+\.head\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        *,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        if len(channels) < 2:
            raise InputError([("", "channels", f"must be of two resolutions or more, got {list(channels)}")])
        unit = partial(Convolution, spatial_dims, act=RELU, norm="batch")
        conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]

        def double(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(OrderedDict(conv1=unit(inputs, outputs), conv2=unit(outputs, outputs)))

        def auxiliary(width: int, scale: int) -> nn.Module:
            to_logits = conv(width, out_channels, 3, padding=1)
            return nn.Sequential(
                OrderedDict(conv=to_logits, up=transposed(out_channels, out_channels, scale, stride=scale))
            )

        steps = []
        for level in reversed(range(len(channels) - 1)):
            width = channels[level]
            head = auxiliary(width, 2**level) if level and deep_supervision else nn.Identity()
            up = transposed(channels[level + 1], width, 2, stride=2)
            convs = double(2 * width, width)
            steps.append(_DecoderStep(up, convs, head=head if level else conv(width, out_channels, 1)))
        self.encoder = nn.ModuleList(double(*widths) for widths in pairwise((in_channels, *channels)))
        self.pools = nn.ModuleList(Pool[Pool.MAX, spatial_dims](2) for _ in steps)
        self.decoder: Any = nn.ModuleList(steps)  # whose type forgets what it holds
        self.deep_supervision = deep_supervision
        self.divisor = 2 ** len(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Maps scans to logits.

        Args:
            x: `(B, in_channels, H, W[, D])`; at four resolutions every size is a multiple of 8.

        Returns:
            `(B, out_channels, H, W[, D])`. With deep supervision, in training, a list of such: those of the finest
            features first.

        Raises:
            InputError: if a size is no such multiple; scripted, the concatenation complains.
        """
        if not is_scripting():
            check_sizes(self.divisor, image=x.shape[2:])
        features: list[torch.Tensor] = []
        for level, pool in zip(self.encoder, self.pools):  # noqa: B905  # one level more; TorchScript knows no strict
            features.append(level(x))
            x = pool(features[-1])
        x = self.encoder[-1](x)
        logits: list[torch.Tensor] = []
        for step in self.decoder:
            x = step(features.pop(), x)
            if self.deep_supervision and self.training:
                logits.append(step.head(x))
        if self.deep_supervision and self.training:
            return logits[::-1]
        return self.decoder[-1].head(x)
