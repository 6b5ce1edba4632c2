"""The fast-thinking and the slow-thinking network (Chen et al., MICCAI 2021) with the reference's parameter names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

__all__ = ["CooperativeNetwork", "Decoder", "Encoder", "ImageEncoder"]

SLOPE = 0.2


def double_conv(in_channels: int, out_channels: int, *, bias: bool = True) -> list[nn.Module]:
    """Two 3x3 convolutions with batch normalisation, a leaky ReLU between them."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out_channels),
    ]


class Down(nn.Module):
    """Residual block on half the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1)
        self.conv = nn.Sequential(*double_conv(in_channels, out_channels))
        self.conv_input = nn.Conv2d(in_channels, out_channels, 1)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, C', H/2, W/2)`."""
        x = self.down(x)
        return self.act(self.conv(x) + self.conv_input(x))


class Up(nn.Module):
    """Residual block on twice the resolution, which is the nearest neighbour's or learned."""

    def __init__(self, in_channels: int, out_channels: int, *, learned: bool) -> None:
        super().__init__()
        self.learned = learned
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2) if learned else nn.Upsample(scale_factor=2)
        self.conv = nn.Sequential(*double_conv(in_channels, out_channels))
        self.conv_input = nn.Conv2d(in_channels, out_channels, 1)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, C', 2H, 2W)`."""
        raised = self.up(x)
        # A 1x1 convolution commutes with repeating pixels and costs a quarter before it.
        shortcut = self.conv_input(raised) if self.learned else self.up(self.conv_input(x))
        return self.act(self.conv(raised) + shortcut)


class Encoder(nn.Sequential):
    """Maps images or label probabilities `(B, C, H, W)` to a non-negative code `(B, K, H/16, W/16)`.

    Args:
        in_channels: channels of the input.
        channels: channels of every resolution, from the finest to the code's; one halving between any two.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                inc=nn.Sequential(*double_conv(in_channels, channels[0])),
                inc_act=nn.LeakyReLU(SLOPE, inplace=True),
                **{f"down{i}": Down(*pair) for i, pair in enumerate(pairwise(channels), 1)},
                final_conv=nn.Sequential(nn.Conv2d(channels[-1], channels[-1], 1), nn.BatchNorm2d(channels[-1])),
                act=nn.ReLU(inplace=True),
            )
        )


class Decoder(nn.Sequential):
    """Maps a code `(B, K, h, w)` to `(B, C, 16h, 16w)`.

    Args:
        out_channels: channels of the output.
        channels: those of the encoder.
        learned: whether up-sampling is a transposed convolution, as for images, or repeats pixels, as for labels.
        bounded: whether the output is a sigmoid's.
    """

    def __init__(
        self, out_channels: int, channels: Sequence[int], *, learned: bool = False, bounded: bool = False
    ) -> None:
        widths = [channels[-1], *channels[-3::-1], channels[0]]
        super().__init__(
            OrderedDict[str, nn.Module](
                **{f"up{i}": Up(*pair, learned=learned) for i, pair in enumerate(pairwise(widths), 1)},
                final_conv=nn.Conv2d(channels[0], out_channels, 1),
                act=nn.Sigmoid() if bounded else nn.Identity(),
            )
        )


class ImageEncoder(nn.Module):
    """Encoder of images whose code is filtered for the segmentation.

    Args:
        in_channels: channels of the image.
        channels: see `Encoder`.
        code: `filtered`, or one of the paper's ablations: `plain` segments from the unfiltered code, `shared`
            reconstructs from the filtered one.
        filter_bias: whether the filter's convolutions have a bias; those of the first publication have none.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], *, code: str, filter_bias: bool) -> None:
        super().__init__()
        self.code = code
        self.general_encoder = Encoder(in_channels, channels)
        self.code_decoupler = nn.Sequential(
            *double_conv(channels[-1], channels[-1], bias=filter_bias), nn.ReLU(inplace=True)
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the image code and the shape code, both `(B, K, H/16, W/16)`."""
        image_code = self.general_encoder(image)
        if self.code == "plain":
            return image_code, image_code
        shape_code = self.code_decoupler(image_code)
        return (shape_code if self.code == "shared" else image_code), shape_code


class CooperativeNetwork(nn.Module):
    """A network that segments an image fast, and one that slowly corrects the shapes in its segmentation.

    The fast-thinking network encodes the image into a code for reconstructing it and a filtered one for segmenting it;
    the slow-thinking network is an autoencoder of label maps that sees no image. In evaluation the segmentation passes
    `refinements` times through the latter.

    Args:
        in_channels: channels of the image.
        classes: label classes, background included.
        channels: channels of every resolution, from the finest to the codes'.
        code: see `ImageEncoder`.
        filter_bias: see `ImageEncoder`.
        bounded: whether reconstructions are a sigmoid's; those of the first publication are linear.
        refinements: passes through the slow-thinking network; with 0 the fast-thinking one answers alone.
        temperature: divides logits before the slow-thinking network sees their softmax.
    """

    # Whose shape depends on the number of classes, see `load_weights`.
    class_layers = r"(segmentation|shape)_decoder\.final_conv\.|shape_encoder\.inc\.0\."

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 4,
        *,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        code: Literal["filtered", "plain", "shared"] = "filtered",
        filter_bias: bool = True,
        bounded: bool = True,
        refinements: int = 1,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self.refinements = refinements
        self.temperature = temperature
        self.image_encoder = ImageEncoder(in_channels, channels, code=code, filter_bias=filter_bias)
        self.segmentation_decoder = Decoder(classes, channels)
        self.image_decoder = Decoder(in_channels, channels, learned=True, bounded=bounded)
        self.shape_encoder = Encoder(classes, channels)
        self.shape_decoder = Decoder(classes, channels)
        self.apply(_initialise)
        for decoder in (self.segmentation_decoder, self.image_decoder, self.shape_decoder):
            nn.init.zeros_(decoder.get_parameter("final_conv.bias"))

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps images `(B, C, H, W)` to image codes and shape codes `(B, K, H/16, W/16)`; sizes are multiples of 16."""
        codes: tuple[torch.Tensor, torch.Tensor] = self.image_encoder(image)
        return codes

    def complete(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Corrects shapes: maps label probabilities `(B, classes, H, W)` to logits of the same shape."""
        logits: torch.Tensor = self.shape_decoder(self.shape_encoder(probabilities))
        return logits

    def refine(self, logits: torch.Tensor) -> torch.Tensor:
        """One pass of logits `(B, classes, H, W)` through the slow-thinking network."""
        return self.complete(torch.softmax(logits / self.temperature, dim=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps images `(B, C, H, W)` to logits `(B, classes, H, W)`; sizes are multiples of 16."""
        logits: torch.Tensor = self.segmentation_decoder(self.encode(image)[1])
        for _ in range(self.refinements):
            logits = self.refine(logits)
        return logits


def _initialise(module: nn.Module) -> None:
    """Kaiming-normal convolutions and nearly neutral normalisation; transposed convolutions keep torch's default."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
