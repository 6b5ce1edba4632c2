"""The student: a residual U-Net for overlapping regions (Lachinov et al., BrainLes 2019)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution, ResidualUnit
from torch import nn

from .shared.convolutions import HalvedConv3d

__all__ = ["JoiningConv3d", "ResUNet", "verify_size"]


def verify_size(x: torch.Tensor, divisor: int) -> None:
    """Raises a `ValueError` unless every spatial size of `x` `(B, C, H, W, D)` is a multiple of `divisor`."""
    for size in x.shape[2:]:
        if size % divisor:
            raise ValueError(f"every spatial size must be a multiple of {divisor}, got {x.shape[2:]}")


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.01, inplace=True)  # what it overwrites is needed by no gradient


def _residual(channels: int, groups: int) -> nn.Module:
    """Twice a convolution of 3 x 3 x 3, group normalisation and leaky rectification; then the sum, left as it is."""
    act, norm = ("leakyrelu", {"negative_slope": 0.01, "inplace": True}), ("group", {"num_groups": groups})
    unit: nn.Module = ResidualUnit(3, channels, channels, adn_ordering="NA", act=act, norm=norm, bias=False)
    for layer in unit.get_submodule("conv").children():
        layer.conv = HalvedConv3d(channels, channels, bias=False)
    return unit


class JoiningConv3d(nn.Conv3d):
    """Convolution of 1 x 1 x 1, without bias, over the channels of one input or two.

    It does not copy them into one tensor, which would be a tenth of what training keeps in memory.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Returns `(B, out_channels, H, W, D)` for inputs `(B, C, H, W, D)` whose C add up to `in_channels`."""
        weight, channels = self.weight.flatten(1), x.shape[1]
        product = weight[:, :channels] @ x.flatten(2)
        if other is not None:
            product += weight[:, channels:] @ other.flatten(2)
        return product.view(x.shape[0], -1, x.shape[2], x.shape[3], x.shape[4])


class _Join(nn.Module):
    """Doubles the resolution of deep features and joins them with those of the encoder."""

    def __init__(self, channels: int, deep_channels: int, *, blocks: int, groups: int, upsampling: str) -> None:
        super().__init__()
        # Interpolation commutes with a convolution of 1 x 1 x 1, which before it has an eighth of the work.
        self.up = nn.Sequential(
            OrderedDict(
                conv=JoiningConv3d(deep_channels, channels),
                interpolation=nn.Upsample(scale_factor=2, mode=upsampling),
                act=_leaky(),
            )
        )
        self.merge = JoiningConv3d(2 * channels, channels)
        self.blocks = nn.Sequential(*(_residual(channels, groups) for _ in range(blocks)))

    def forward(self, shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.merge(shallow, self.up(deep)))


class ResUNet(nn.Module):
    """Residual U-Net for the overlapping regions whole tumour, tumour core and enhancing tumour.

    Convolutions start Kaiming-normal. The reference builds a fourth decoder level that nothing uses, returns
    probabilities, and interpolates ahead of its 1 x 1 x 1 convolutions, which gives the same.

    Args:
        in_channels: MRI sequences: T1, T1ce, T2, FLAIR.
        out_channels: regions: WT, TC, ET.
        channels: widths of the resolutions, finest first; every one halves the resolution. Multiples of `groups`.
        encoder_blocks: residual blocks of each resolution on the way down.
        decoder_blocks: residual blocks of each resolution but the coarsest on the way up, finest first.
        groups: groups of the normalisations.
        upsampling: `"trilinear"`, or `"nearest"` as in the release for OpenVINO, which is no small change: the same
            weights give other probabilities.

    Raises:
        ValueError: if the numbers of widths and blocks do not fit together, or `upsampling` is another.
    """

    class_layers = r"head\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (16, 32, 64, 128),
        encoder_blocks: Sequence[int] = (1, 2, 2, 4),
        decoder_blocks: Sequence[int] = (1, 1, 1),
        groups: int = 8,
        upsampling: str = "trilinear",
    ) -> None:
        super().__init__()
        if not len(channels) == len(encoder_blocks) == len(decoder_blocks) + 1:
            raise ValueError(f"one width too many or too few: {channels}, blocks {encoder_blocks}, {decoder_blocks}")
        if upsampling not in ("trilinear", "nearest"):
            raise ValueError(f"upsampling must be 'trilinear' or 'nearest', got {upsampling!r}")
        norm = ("group", {"num_groups": groups})
        self.encoder = nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(channels, encoder_blocks, strict=True)):
            entry: nn.Module = nn.Conv3d(channels[level - 1], width, 2, stride=2, bias=False)
            if level == 0:
                entry = Convolution(3, in_channels, width, adn_ordering="N", norm=norm, bias=False)
                entry.conv = HalvedConv3d(in_channels, width, bias=False)
            self.encoder.append(nn.Sequential(entry, *(_residual(width, groups) for _ in range(blocks))))
        levels = list(zip(channels[:-1], channels[1:], decoder_blocks, strict=True))
        self.decoder = nn.ModuleList(  # in the order of the forward pass
            _Join(width, deep, blocks=blocks, groups=groups, upsampling=upsampling)
            for width, deep, blocks in reversed(levels)
        )
        self.head = HalvedConv3d(channels[0], out_channels)
        self.divisor = 2 ** len(decoder_blocks)
        self.apply(_kaiming_normal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps scans to logits of the regions.

        Args:
            x: `(B, in_channels, H, W, D)`; at four resolutions every size is a multiple of 8 voxels.

        Returns:
            `(B, out_channels, H, W, D)`.

        Raises:
            ValueError: if a size is no such multiple.
        """
        verify_size(x, self.divisor)
        features: list[torch.Tensor] = []
        for level in self.encoder:
            x = level(x)
            features.append(x)
        x = features.pop()
        for join in self.decoder:
            x = join(features.pop(), x)
        return self.head(x)


def _kaiming_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
