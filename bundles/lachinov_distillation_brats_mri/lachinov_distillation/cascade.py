"""The Cascaded UNet, one of the teachers (Lachinov et al., BrainLes 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import SkipConnection
from torch import nn
from torch.nn import functional

from .networks import verify_size

__all__ = ["CascadedUNet"]

BACKGROUND_BIAS = 3.0  # before training background has a probability near 0.9


def _norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, eps=1e-3, affine=True)


def _preactivated(channels: int, groups: int = 1) -> nn.Module:
    """Twice normalisation, rectification and a convolution of 3 x 3 x 3, added to the input."""
    layers: list[nn.Module] = []
    for _ in range(2):
        conv = nn.Conv3d(channels, channels, 3, padding=1, groups=groups)
        layers += [_norm(channels), nn.ReLU(inplace=True), conv]
    block: nn.Module = SkipConnection(nn.Sequential(*layers), mode="add")
    return block


class _UpStep(nn.Module):
    """Doubles the resolution, joins the fused encoders and, if any, the classes that a coarser network found."""

    def __init__(self, in_channels: int, channels: int, *, joined: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, channels, 2, stride=2, bias=False)
        self.merge = nn.Conv3d(channels + joined, channels, 1)
        self.block = _preactivated(channels)

    def forward(self, x: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.block(self.merge(torch.cat([self.up(x), *others], dim=1)))


class _StageUNet(nn.Module):
    """One network of the cascade: an encoder for each sequence, fused by their maximum, and one decoder.

    Args:
        in_channels: sequences.
        out_channels: classes.
        features: channels of each encoder at the finest resolution; every halving doubles them.
        dropout: probability that a value is dropped after each halving.
        coarser: how many coarser networks there are; the classes of the one with half the resolution join at half,
            those of the one with a quarter at a quarter.
    """

    def __init__(self, in_channels: int, out_channels: int, *, features: int, dropout: float, coarser: int) -> None:
        super().__init__()
        n, f = in_channels, features
        self.sequences = n
        self.encoder = nn.ModuleList(
            [nn.Sequential(nn.Conv3d(n, n * f, 3, padding=1, groups=n), _preactivated(n * f, n))]
        )
        for width in (2 * f, 4 * f, 8 * f):
            down = nn.Conv3d(n * width // 2, n * width, 3, stride=2, padding=1, groups=n)
            self.encoder.append(nn.Sequential(down, nn.Dropout(dropout), _preactivated(n * width, n)))
        half, quarter = (out_channels if coarser >= count else 0 for count in (1, 2))
        self.decoder = nn.ModuleList(
            [
                _UpStep(8 * f, 8 * f, joined=4 * f + quarter),
                _UpStep(8 * f, 4 * f, joined=2 * f + half),
                _UpStep(4 * f, 2 * f, joined=f),
            ]
        )
        self.head = nn.Conv3d(2 * f, out_channels, 1)

    def forward(self, x: torch.Tensor, coarser: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns logits for scans and the probabilities that the coarser networks gave, coarsest first."""
        fused: list[torch.Tensor] = []
        for level in self.encoder:
            x = level(x)
            fused.append(torch.unflatten(x, 1, (self.sequences, -1)).amax(1))
        joined = [[fused[2], *coarser[-2:-1]], [fused[1], *coarser[-1:]], [fused[0]]]
        x = fused[3]
        for step, others in zip(self.decoder, joined, strict=True):
            x = step(x, others)
        return self.head(x)


class CascadedUNet(nn.Module):
    """Three U-Nets at a quarter, half and all of the resolution; each sees the classes that the coarser ones found.

    Source: public repository lachinov/brats2018-graphlabunn (Lachinov et al., BrainLes 2018). Each sequence has an
    encoder of its own and the maximum over them is symmetric, so their order makes no difference to the architecture:
    the bundle's order is T1, T1ce, T2, FLAIR, the reference's T1, T2, FLAIR, T1ce. Convolutions start Xavier-uniform,
    and unlike in the reference the outputs start with background: the loss has no term for it, and a network that
    starts with enhancing tumour everywhere may take that for background for good.

    Args:
        in_channels: MRI sequences.
        out_channels: classes: background, necrosis, oedema, enhancing tumour.
        base: channels of an encoder at the finest resolution of the finest network; the coarser ones have two and four
            times as many. 8 as in the release for OpenVINO, 4 as in the reference's settings.
        dropout: probability that a value is dropped after each halving.
    """

    def __init__(self, in_channels: int = 4, out_channels: int = 4, *, base: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _StageUNet(in_channels, out_channels, features=base * factor, dropout=dropout, coarser=coarser)
            for coarser, factor in enumerate((4, 2, 1))
        )
        self.apply(_xavier_uniform)
        for name, parameter in self.named_parameters():
            if name.endswith("head.bias"):
                parameter.data[0] = BACKGROUND_BIAS

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Maps scans to logits of the classes.

        Args:
            x: `(B, in_channels, H, W, D)`; every size is a multiple of 32 voxels, as the coarsest network halves a
                quarter of it three times, and one of them is more than 32, lest nothing be left to normalise. The
                reference's are 128.

        Returns:
            In training the logits of all three networks, finest first: `(B, out_channels, H, W, D)`, then half and a
            quarter of the size. In evaluation those of the finest.

        Raises:
            ValueError: if a size is no multiple of 32, or all are 32.
        """
        verify_size(x, 32)
        logits: list[torch.Tensor] = []
        for stage, factor in zip(self.stages, (4, 2, 1), strict=True):
            scan = functional.avg_pool3d(x, factor) if factor > 1 else x
            logits.append(stage(scan, [coarse.softmax(1) for coarse in logits]))
        return logits[::-1] if self.training else logits[-1]


def _xavier_uniform(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
