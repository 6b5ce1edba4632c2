"""V-Net with optional attention, as published for left-atrium segmentation in LGE-MRI.

The network differs from `monai.networks.nets.VNet`: half the widths, no normalisation, plain residual additions
without a following activation, 5x5x5 kernels that may be dilated in the encoder, and a PReLU on the output logit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import nn

__all__ = ["AttentionGate", "VNet"]


def _activation(name: str, channels: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(channels)
    if name == "elu":
        return nn.ELU()
    raise ValueError(f"act must be 'prelu' or 'elu', got {name!r}")


def _conv_units(channels: int, count: int, *, act: str, norm: str | None, dilation: int = 1) -> nn.Sequential:
    """`count` times a 5x5x5 convolution that keeps size and width, its normalisation if any, and its activation."""

    def unit() -> nn.Sequential:
        conv = nn.Conv3d(channels, channels, kernel_size=5, padding=2 * dilation, dilation=dilation)
        layers = OrderedDict[str, nn.Module](conv=conv)
        if norm is not None:
            layers["norm"] = get_norm_layer((norm, {"affine": True}), spatial_dims=3, channels=channels)
        layers["act"] = _activation(act, channels)
        return nn.Sequential(layers)

    return nn.Sequential(*(unit() for _ in range(count)))


def _initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for convolutions; all other layers keep torch's own."""
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution has one


class AttentionGate(nn.Module):
    """Channel gate, then dilated spatial gate, each residual, and a residual around both.

    For an input `x` of shape `(B, C, H, W, D)` the output is `x * (1 + (1 + c) * (1 + s))` with channel weights `c` of
    shape `(B, C, 1, 1, 1)` and voxel weights `s` of shape `(B, 1, H, W, D)`, both in (0, 1). A sequential variant of
    the bottleneck attention module (Park et al., BMVC 2018). In training mode the batch must hold two samples or more,
    because the channel gate normalises over the batch.

    Args:
        channels: number of channels `C`, a multiple of `reduction`.
        reduction: factor by which both gates narrow their hidden layers.
        dilation: dilation of the two 3x3x3 convolutions of the spatial gate.
    """

    def __init__(self, channels: int, *, reduction: int = 4, dilation: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        spatial: list[nn.Module] = [nn.Conv3d(channels, hidden, 1), nn.BatchNorm3d(hidden), nn.ReLU()]
        for _ in range(2):
            spatial.append(nn.Conv3d(hidden, hidden, 3, padding=dilation, dilation=dilation))
            spatial += [nn.BatchNorm3d(hidden), nn.ReLU()]
        self.spatial = nn.Sequential(*spatial, nn.Conv3d(hidden, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the gated features, same shape as `x`."""
        channel_weights = self.channel(x.mean(dim=(2, 3, 4))).sigmoid()[:, :, None, None, None]
        gated = x * (1 + channel_weights)
        return x + gated * (1 + self.spatial(gated).sigmoid())


class _Stem(nn.Module):
    """Widens the input, attends, adds the input to every channel."""

    def __init__(self, in_channels: int, channels: int, *, dilation: int, act: str, attention: nn.Module) -> None:
        super().__init__()
        self.repeats = channels // in_channels
        self.expand = nn.Conv3d(in_channels, channels, kernel_size=5, padding=2 * dilation, dilation=dilation)
        self.act = _activation(act, channels)
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(self.act(self.expand(x))) + x.repeat_interleave(self.repeats, dim=1)


class _Down(nn.Module):
    """Halves the size, refines, attends, adds."""

    def __init__(
        self, in_channels: int, channels: int, convs: nn.Sequential, *, act: str, attention: nn.Module
    ) -> None:
        super().__init__()
        self.down = nn.Conv3d(in_channels, channels, kernel_size=2, stride=2)
        self.act = _activation(act, channels)
        self.convs = convs
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.down(x))
        return self.attention(self.convs(x)) + x


class _Up(nn.Module):
    """Doubles the size, joins the skipped features, refines, adds."""

    def __init__(self, in_channels: int, channels: int, convs: nn.Sequential, *, act: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, channels // 2, kernel_size=2, stride=2)
        self.act = _activation(act, channels // 2)
        self.convs = convs

    def forward(self, x: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.act(self.up(x)), skipped], dim=1)
        return self.convs(x) + x


class VNet(nn.Module):
    """V-Net for single-class segmentation, input and output of shape `(B, C, H, W, D)`, the output in logits.

    Source: public repository bragancas/VNet_PyTorch-Atriaseg2018 (2021), after Milletari et al., 3DV 2016.
    The published variants are `convs=(1, 1, 2, 2)` (10.75 M parameters; also the locator), the same with attention, and
    `convs=(2, 2, 3, 3)` (16.2 M).

    Args:
        in_channels: channels of the input, a divisor of `channels[0]`.
        out_channels: channels of the logits.
        channels: widths of the five levels, each twice the one before.
        convs: 5x5x5 convolutions of levels 2 to 5; the decoder mirrors them.
        dilation: dilation of the 5x5x5 convolutions of the encoder.
        act: `"prelu"` or `"elu"`, after every convolution.
        norm: MONAI's name of the normalisation in each 5x5x5 convolution below the first level, for example
            `"instance"`; the published networks have none.
        attention: whether each encoder level ends in an `AttentionGate`.
        attention_reduction: see `AttentionGate`.
        attention_dilation: see `AttentionGate`.
    """

    class_layers = r"head\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        channels: Sequence[int] = (8, 16, 32, 64, 128),
        convs: Sequence[int] = (1, 1, 2, 2),
        dilation: int = 1,
        act: str = "prelu",
        norm: str | None = None,
        attention: bool = False,
        attention_reduction: int = 4,
        attention_dilation: int = 4,
    ) -> None:
        super().__init__()
        if len(channels) != len(convs) + 1 or list(channels[1:]) != [2 * width for width in channels[:-1]]:
            raise ValueError(f"channels needs one value more than convs, each twice the last: {channels}, {convs}")
        if channels[0] % in_channels:
            raise ValueError(f"channels[0] = {channels[0]} must be a multiple of in_channels = {in_channels}")

        def gate(width: int) -> nn.Module:
            if not attention:
                return nn.Identity()
            return AttentionGate(width, reduction=attention_reduction, dilation=attention_dilation)

        stem = _Stem(in_channels, channels[0], dilation=dilation, act=act, attention=gate(channels[0]))
        self.encoder = nn.ModuleList([stem])
        self.decoder = nn.ModuleList()
        below = channels[-1]
        for width_in, width, count in zip(channels, channels[1:], convs, strict=False):
            units = _conv_units(width, count, act=act, norm=norm, dilation=dilation)
            self.encoder.append(_Down(width_in, width, units, act=act, attention=gate(width)))
        for width, count in zip(channels[:0:-1], convs[::-1], strict=True):
            units = _conv_units(width, count, act=act, norm=norm)
            self.decoder.append(_Up(below, width, units, act=act))
            below = width
        self.head = nn.Sequential(
            OrderedDict(conv=nn.Conv3d(below, out_channels, kernel_size=1), act=_activation(act, out_channels))
        )
        self.divisor = 2 ** len(convs)
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape `(B, out_channels, H, W, D)`; every size must be a multiple of 16 (five levels)."""
        for size in x.shape[2:]:
            if size % self.divisor != 0:
                raise ValueError("every spatial size of the input must be a multiple of 2 ** (number of levels - 1)")
        skipped: list[torch.Tensor] = []
        for level in self.encoder:
            x = level(x)
            skipped.append(x)
        for i, level in enumerate(self.decoder):
            x = level(x, skipped[-2 - i])
        return self.head(x)
