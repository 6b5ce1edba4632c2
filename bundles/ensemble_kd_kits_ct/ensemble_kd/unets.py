"""Further U-Nets of the reference implementation, without batch normalisation between convolutions.

All of them return logits. Convolutions and normalisations start as PyTorch's do by default.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout, Norm, Pool
from torch import nn

from .encoder_decoder import RELU, DecoderStep, EncoderDecoder, check_dims, decoder_steps
from .shared.validation import InputError

__all__ = ["LightUNet", "PlainUNet"]


class PlainUNet(EncoderDecoder):
    """U-Net that normalises what goes from one resolution to the next, and drops single values between convolutions.

    Args:
        spatial_dims: 2 or 3.
        out_channels: label classes, background included.
        in_channels: channels of a scan.
        channels: those of every resolution, finest first.
        act: activation of the convolutions, `"relu"` or `"elu"`.
        dropout: probability that a value is dropped between the two convolutions of a block.
        deep_supervision: return the logits of three resolutions in training, those of the finest first.

    Raises:
        InputError: if `spatial_dims` or `act` is another, or there is but one resolution.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        *,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        act: str = "relu",
        dropout: float = 0.2,
        deep_supervision: bool = False,
    ) -> None:
        check_dims(spatial_dims)
        if act not in ("relu", "elu"):
            raise InputError([("", "act", f"must be 'relu' or 'elu', got {act!r}")])
        unit = partial(Convolution, spatial_dims, adn_ordering="AD", act=(act, {"inplace": True}), norm=None)
        norm = Norm[Norm.BATCH, spatial_dims]

        def block(inputs: int, outputs: int, *, before: bool = False, after: bool = False) -> nn.Module:
            parts = {"before": norm(inputs)} if before else {}
            parts |= {"conv1": unit(inputs, outputs, dropout=dropout), "conv2": unit(outputs, outputs)}
            return nn.Sequential(OrderedDict(parts | ({"after": norm(outputs)} if after else {})))

        decoder = decoder_steps(
            spatial_dims,
            channels,
            out_channels=out_channels,
            convs=partial(block, after=True),
            deep_supervision=deep_supervision,
            auxiliary_act=nn.ReLU,
        )
        super().__init__(
            [
                block(*widths, before=level > 0, after=level == len(decoder))
                for level, widths in enumerate(pairwise((in_channels, *channels)))
            ],
            [Pool[Pool.MAX, spatial_dims](2) for _ in decoder],
            decoder=decoder,
            deep_supervision=deep_supervision,
        )


class LightUNet(EncoderDecoder):
    """U-Net with interpolation and a sixth of the parameters; all its normalisation is in the head.

    Args:
        spatial_dims: 2 or 3.
        out_channels: label classes, background included.
        in_channels: channels of a scan.
        channels: the four resolutions have a half, one, two and two times as many; even.
        strided: halve the resolution by convolutions of width 2 instead of max-pooling.
        dropout: probability that a channel is dropped ahead of the two hidden layers of the head.

    Raises:
        InputError: if `spatial_dims` is another, or `channels` is odd.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        *,
        in_channels: int = 1,
        channels: int = 32,
        strided: bool = False,
        dropout: float = 0.5,
    ) -> None:
        check_dims(spatial_dims)
        if channels < 2 or channels % 2:
            raise InputError([("", "channels", f"must be even and positive, got {channels}")])
        unit = partial(Convolution, spatial_dims, adn_ordering="A", act=RELU, norm=None)
        conv, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        drop, pool = Dropout[Dropout.DROPOUT, spatial_dims], Pool[Pool.MAX, spatial_dims]
        widths = (channels // 2, channels, 2 * channels, 2 * channels)

        def double(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(OrderedDict(conv1=unit(inputs, outputs), conv2=unit(outputs, outputs)))

        head = nn.Sequential(
            OrderedDict(
                norm1=norm(widths[0]),
                dropout1=drop(dropout),
                conv1=unit(widths[0], widths[0], kernel_size=1),
                norm2=norm(widths[0]),
                dropout2=drop(dropout),
                conv2=unit(widths[0], channels, kernel_size=1),
                logits=conv(channels, out_channels, 1),
            )
        )
        up = nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear", align_corners=True)
        super().__init__(
            [double(*pair) for pair in pairwise((in_channels, *widths))],
            [unit(x, x, kernel_size=2, strides=2, padding=0) if strided else pool(2) for x in widths[:-1]],
            decoder=[
                DecoderStep(up, double(widths[level] + widths[level + 1], widths[level]), head=None if level else head)
                for level in (2, 1, 0)
            ],
        )
