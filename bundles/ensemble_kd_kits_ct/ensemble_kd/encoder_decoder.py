"""What the U-Nets have in common: the way through their modules, and the steps of a decoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from .shared.validation import InputError, check_sizes

__all__ = ["RELU", "DecoderStep", "EncoderDecoder", "check_dims", "decoder_steps", "is_scripting"]

is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # not exported by name
RELU = ("relu", {"inplace": True})  # what it overwrites is needed by no gradient


def check_dims(spatial_dims: int) -> None:
    """Raises an `InputError` unless there are 2 or 3 spatial dimensions."""
    if spatial_dims not in (2, 3):
        raise InputError([("", "spatial_dims", f"must be 2 or 3, got {spatial_dims}")])


class DecoderStep(nn.Module):
    """Doubles the resolution of deep features and joins them with those of the encoder.

    Args:
        up: doubles the resolution.
        convs: what follows the concatenation, deep features first.
        head: makes logits of full resolution from the result; without one the step is never asked for them.
    """

    def __init__(self, up: nn.Module, convs: nn.Module, *, head: nn.Module | None = None) -> None:
        super().__init__()
        self.up = up
        self.convs = convs
        self.head = nn.Identity() if head is None else head

    def forward(self, shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
        """Maps features `(B, S, H, W[, D])` and `(B, C, H/2, W/2[, D/2])` to joined ones `(B, J, H, W[, D])`."""
        return self.convs(torch.cat([self.up(deep), shallow], dim=1))


class EncoderDecoder(nn.Module):
    """The way through the modules of a U-Net.

    Args:
        encoder: a module per resolution, finest first.
        pools: what halves the resolution between them.
        decoder: a step per resolution but the coarsest, finest last. The last has a head; with deep supervision all do.
        deep_supervision: return the logits of all heads in training.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        pools: Sequence[nn.Module],
        *,
        decoder: Sequence[nn.Module],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(encoder)
        self.pools = nn.ModuleList(pools)
        self.decoder: Any = nn.ModuleList(decoder)  # of steps, which its type forgets
        self.deep_supervision = deep_supervision
        self.divisor = 2 ** len(pools)

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


def decoder_steps(
    spatial_dims: int,
    channels: Sequence[int],
    *,
    out_channels: int,
    convs: Callable[[int, int], nn.Module],
    deep_supervision: bool,
    auxiliary_act: type[nn.Module] = nn.Identity,
) -> list[DecoderStep]:
    """Steps with transposed convolutions, finest last, and their heads.

    Args:
        spatial_dims: 2 or 3.
        channels: those of every resolution, finest first.
        out_channels: label classes, background included.
        convs: from channels in and out to the convolutions of a step.
        deep_supervision: give all steps a head: a convolution to logits, which a transposed one brings to full
            resolution.
        auxiliary_act: what stands between these two.

    Raises:
        InputError: if `spatial_dims` is neither 2 nor 3, or there is but one resolution.
    """
    check_dims(spatial_dims)
    if len(channels) < 2:
        raise InputError([("", "channels", f"must be of two resolutions or more, got {list(channels)}")])
    conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]

    def auxiliary(width: int, scale: int) -> nn.Module:
        to_logits = conv(width, out_channels, 3, padding=1)
        up = transposed(out_channels, out_channels, scale, stride=scale)
        return nn.Sequential(OrderedDict(conv=to_logits, act=auxiliary_act(), up=up))

    steps = []
    for level in reversed(range(len(channels) - 1)):
        width = channels[level]
        head = auxiliary(width, 2**level) if level and deep_supervision else None
        up = transposed(channels[level + 1], width, 2, stride=2)
        steps.append(DecoderStep(up, convs(2 * width, width), head=head if level else conv(width, out_channels, 1)))
    return steps
