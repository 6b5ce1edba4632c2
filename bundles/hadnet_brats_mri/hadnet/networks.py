"""The segmentation network of teacher and student, and the discriminator that sees their features (Vadacchino 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import ADN, Convolution
from torch import nn
from torch.nn import functional

from .shared.convolutions import HalvedConv3d

__all__ = ["Discriminator", "SegmentationNetwork", "WithFeatures"]

ACTIVATION = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
NORM = ("instance", {"affine": True})

Pair = tuple[torch.Tensor, torch.Tensor]


def _convolution(in_channels: int, out_channels: int) -> Convolution:
    """A convolution of 3 x 3 x 3, instance normalisation and leaky rectification."""
    layers = Convolution(3, in_channels, out_channels, adn_ordering="NA", act=ACTIVATION, norm=NORM)
    layers.conv = HalvedConv3d(in_channels, out_channels)
    return layers


def _block(in_channels: int, channels: int, out_channels: int, *, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, then two convolutions."""
    convolutions = _convolution(in_channels, channels), _convolution(channels, out_channels)
    return nn.Sequential(nn.Dropout3d(dropout), *convolutions)


def _like(deep: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
    """Nearest-neighbour interpolation of `deep` to the spatial size of `shallow`."""
    return functional.interpolate(deep, size=shallow.shape[2:])


class UpBlock(nn.Module):
    """Joins the features of a resolution with those of the next lower one; both have `channels`.

    One convolution of both, had they been concatenated, would give the same; apart they need less memory.

    Args:
        channels: channels of both inputs.
        out_channels: channels of the output.
        dropout: probability that a channel of an input is dropped.
    """

    def __init__(self, channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(dropout)
        self.skip = HalvedConv3d(channels, channels, bias=False)
        self.up = HalvedConv3d(channels, channels)
        self.adn = ADN("NA", channels, act=ACTIVATION, norm=NORM, norm_dim=3)
        self.out = _convolution(channels, out_channels)

    def forward(self, shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W, D)` and `(B, C, H//2, W//2, D//2)` to `(B, out_channels, H, W, D)`."""
        deep = _like(deep, shallow)
        shallow = self.skip(self.dropout(shallow))
        joined: torch.Tensor = self.out(self.adn(shallow + self.up(self.dropout(deep))))
        return joined


class SegmentationNetwork(nn.Module):
    """3D U-Net of five resolutions, teacher and student alike.

    Convolutions start Kaiming-normal, biases at 0. Inputs of any size of 32 voxels or more; sizes need not be multiples
    of 16.

    Args:
        in_channels: MRI sequences.
        classes: label classes, background included.
        filters: channels of the finest resolution; every halving doubles them.
        dropout: probability that a channel is dropped, everywhere but at the input.
    """

    class_layers = r"head\."  # whose shape depends on the number of classes, see `load_weights`

    def __init__(self, in_channels: int, classes: int = 4, *, filters: int = 32, dropout: float = 0.2) -> None:
        super().__init__()
        k = filters
        self.encoder = nn.ModuleList(
            [
                _block(in_channels, k, k, dropout=0.0),
                _block(k, 2 * k, 2 * k, dropout=dropout),
                _block(2 * k, 4 * k, 4 * k, dropout=dropout),
                _block(4 * k, 8 * k, 8 * k, dropout=dropout),
            ]
        )
        self.bottleneck = _block(8 * k, 16 * k, 8 * k, dropout=dropout)
        self.decoder = nn.ModuleList(
            [
                UpBlock(8 * k, 4 * k, dropout=dropout),
                UpBlock(4 * k, 2 * k, dropout=dropout),
                UpBlock(2 * k, k, dropout=dropout),
                UpBlock(k, k, dropout=dropout),
            ]
        )
        self.head = nn.Conv3d(k, classes, 1)
        self.apply(_initialise)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Pair]]:
        """Returns what the discriminator sees.

        Args:
            x: `(B, in_channels, H, W, D)`.

        Returns:
            Logits `(B, classes, H, W, D)`, and for a half, a quarter and an eighth of the resolution the features of
            the encoder there `(B, 2k, H//2, W//2, D//2)` ... with the features of the decoder from the next lower one
            `(B, 2k, H//4, W//4, D//4)` ...
        """
        shallow: list[torch.Tensor] = []
        for block in self.encoder:
            x = block(functional.max_pool3d(x, 2) if len(shallow) > 0 else x)
            shallow.append(x)
        x = self.bottleneck(functional.max_pool3d(x, 2))
        deep = [x]
        for index, join in enumerate(self.decoder):
            x = join(shallow[3 - index], x)
            deep.append(x)
        return self.head(x), [(shallow[1], deep[2]), (shallow[2], deep[1]), (shallow[3], deep[0])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps scans `(B, in_channels, H, W, D)` to logits `(B, classes, H, W, D)`."""
        logits: torch.Tensor = self.features(x)[0]
        return logits


class WithFeatures(nn.Module):
    """A segmentation network whose forward pass returns its features too, as distributed training needs it.

    Args:
        network: the network.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Pair]]:
        """Returns `SegmentationNetwork.features`."""
        return self.network.features(x)


class Discriminator(nn.Module):
    """Tells the teacher's segmentations and features (1) from the student's (0), patch by patch.

    Args:
        in_channels: label classes and the sequences that the student sees.
        filters: those of the segmentation networks.
        hierarchical: whether it sees features; without them it is the discriminator of AD-Net, the paper's ablation.
    """

    def __init__(self, in_channels: int, *, filters: int = 32, hierarchical: bool = True) -> None:
        super().__init__()
        self.hierarchical = hierarchical
        widths = [4 * filters, 8 * filters, 16 * filters, 32 * filters]
        inputs = [in_channels, *(width * (2 if hierarchical else 1) for width in widths[:3])]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(given, width, 4, stride=2, padding=1),
                nn.InstanceNorm3d(width) if index else nn.Identity(),
                nn.LeakyReLU(0.2, inplace=True),
            )
            for index, (given, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.head = nn.Conv3d(widths[3], 1, 4, padding=1, bias=False)

    def forward(self, logits: torch.Tensor, scan: torch.Tensor, *, pairs: Sequence[Pair]) -> torch.Tensor:
        """Judges segmentations.

        Args:
            logits: `(B, classes, H, W, D)`, 32 voxels or more along each axis.
            scan: what the student sees, `(B, sequences, H, W, D)`.
            pairs: the features of `SegmentationNetwork.features`.

        Returns:
            `(B, 1, H//16 - 1, W//16 - 1, D//16 - 1)`, unbounded.
        """
        x = torch.cat([logits, scan], dim=1)
        for index, block in enumerate(self.blocks):
            if index and self.hierarchical:
                shallow, deep = pairs[index - 1]
                x = torch.cat([x, shallow, _like(deep, shallow)], dim=1)
            x = block(x)
        verdict: torch.Tensor = self.head(x)
        return verdict


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
