"""The three architectures of Noothout et al. 2022 (J. Med. Imaging 9(5) 052407): dilated CNN, residual network, U-Net.

All of them return logits. Convolutions and normalisations start as PyTorch's do by default.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from monai.networks.blocks import ADN, Convolution
from monai.networks.layers.factories import Conv, Dropout
from torch import nn
from torch.nn import functional

from .shared.validation import InputError, check_sizes
from .unet import RELU, UNet, check_dims, is_scripting

__all__ = ["DilatedCNN", "ResNet", "UNet"]

DILATIONS = {35: (1, 1, 2, 4, 8), 67: (1, 1, 2, 4, 8, 16), 131: (1, 1, 2, 4, 8, 16, 32)}  # receptive field: those


class DilatedCNN(nn.Module):
    """2D network of dilated convolutions without padding.

    Every pixel of the output sees `receptive_field = 1 + 2 * (sum(dilations) + 1)` pixels of the input in either
    direction: pixel `j` those from `j` on, with `j + receptive_field // 2` in their middle.

    Args:
        out_channels: label classes, background included.
        receptive_field: 35, 67 or 131 pixels.
        in_channels: channels of a slice.
        channels: those of every dilated convolution; the two layers after them have 3 and 6 times as many.
        dropout: probability that a channel is dropped ahead of each of these two.

    Raises:
        InputError: if the receptive field is another.
    """

    class_layers = r"head\.logits\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(
        self,
        out_channels: int,
        receptive_field: int,
        *,
        in_channels: int = 1,
        channels: int = 32,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if receptive_field not in DILATIONS:
            rule = f"must be one of {', '.join(map(str, DILATIONS))}, got {receptive_field}"
            raise InputError([("", "receptive_field", rule)])
        self.receptive_field = receptive_field
        unit = partial(Convolution, 2, padding=0, adn_ordering="A", act=RELU, norm=None)
        self.dilated = nn.Sequential(
            *(
                unit(channels if level else in_channels, channels, dilation=dilation)
                for level, dilation in enumerate(DILATIONS[receptive_field])
            )
        )
        self.merge = unit(channels, channels)
        self.head = nn.Sequential(
            OrderedDict(
                norm1=nn.BatchNorm2d(channels),
                dropout1=nn.Dropout2d(dropout),
                conv1=nn.Conv2d(channels, 3 * channels, 1),
                act1=nn.ReLU(inplace=True),
                norm2=nn.BatchNorm2d(3 * channels),
                dropout2=nn.Dropout2d(dropout),
                conv2=nn.Conv2d(3 * channels, 6 * channels, 1),
                act2=nn.ReLU(inplace=True),
                logits=nn.Conv2d(6 * channels, out_channels, 1),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps slices or patches of them to logits.

        Args:
            x: `(B, in_channels, H, W)`.

        Returns:
            `(B, out_channels, H - receptive_field + 1, W - receptive_field + 1)`.

        Raises:
            InputError: if a size is smaller than the receptive field; scripted, the convolutions complain.
        """
        if not is_scripting() and min(x.shape[2:]) < self.receptive_field:
            rule = f"must be at least {self.receptive_field} pixels wide, got {list(x.shape[2:])}"
            raise InputError([("", "image", rule)])
        return self.head(self.merge(self.dilated(x)))

    def within_zeros(self, x: torch.Tensor) -> torch.Tensor:
        """Maps slices to logits of their own size, as `forward` maps them within `receptive_field // 2` zeros.

        With less work: far from a slice a layer's output is the same everywhere, so it is computed once, and the layers
        run on what differs from it. This part grows by the dilation of each layer, at most as far as the output needs.

        Args:
            x: `(B, in_channels, H, W)`.

        Returns:
            `(B, out_channels, H, W)`, equal to single precision.
        """
        layers = [unit.conv for unit in (*self.dilated, self.merge)]
        background = x.new_zeros(x.shape[1])
        reach = [layer.dilation[0] for layer in layers]
        grown = 0
        for level, layer in enumerate(layers):
            size = min(grown + reach[level], sum(reach[level + 1 :]))
            padding = size - grown + reach[level]
            bias = layer.bias + layer.weight.sum((2, 3)) @ background
            x = functional.conv2d(x, layer.weight, bias, padding=padding, dilation=layer.dilation).relu_()
            background, grown = bias.relu(), size
            if level < len(layers) - 1:
                x -= background[:, None, None]
        return self.head(x)


class _ResidualBlock(nn.Module):
    """Twice normalisation, rectification and convolution, with dropout of single values; then the sum."""

    def __init__(self, spatial_dims: int, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.adn = ADN("NA", channels, act=RELU, norm="batch", norm_dim=spatial_dims)
        self.conv1 = Convolution(
            spatial_dims, channels, channels, adn_ordering="NDA", act=RELU, norm="batch", dropout=dropout
        )
        self.conv2 = Convolution(
            spatial_dims, channels, channels, adn_ordering="D", act=None, norm=None, dropout=dropout
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(self.adn(x))).add_(x)  # a buffer less than x + ...


class ResNet(nn.Module):
    """Residual network at a quarter of the resolution, in 2D or 3D.

    Args:
        spatial_dims: 2 or 3.
        out_channels: label classes, background included.
        in_channels: channels of a scan.
        channels: those at full resolution; every halving doubles them.
        blocks: residual blocks.
        dropout: probability that a value is dropped in a block, and a channel ahead of the last two convolutions.

    Raises:
        InputError: if `spatial_dims` is another.
    """

    class_layers = r"head\.logits\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        *,
        in_channels: int = 1,
        channels: int = 32,
        blocks: int = 6,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        unit = partial(Convolution, spatial_dims, act=RELU, norm="batch")
        conv, drop = Conv[Conv.CONV, spatial_dims], Dropout[Dropout.DROPOUT, spatial_dims]
        half, quarter = 2 * channels, 4 * channels
        self.encoder = nn.Sequential(
            unit(in_channels, channels), unit(channels, half, strides=2), unit(half, quarter, strides=2)
        )
        self.blocks = nn.Sequential(*(_ResidualBlock(spatial_dims, quarter, dropout=dropout) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            unit(quarter, half, strides=2, is_transposed=True), unit(half, channels, strides=2, is_transposed=True)
        )
        self.head = nn.Sequential(
            OrderedDict(
                dropout1=drop(dropout),
                conv=conv(channels, channels, 1),
                act=nn.ReLU(inplace=True),
                dropout2=drop(dropout),
                logits=conv(channels, out_channels, 1),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps scans to logits.

        Args:
            x: `(B, in_channels, H, W[, D])`; every size is a multiple of 4.

        Returns:
            `(B, out_channels, H, W[, D])`.

        Raises:
            InputError: if a size is no such multiple; not when scripted.
        """
        if not is_scripting():
            check_sizes(4, image=x.shape[2:])
        return self.head(self.decoder(self.blocks(self.encoder(x))))
