"""One cooperative training step: the losses of both networks on noisy images and on hard examples made from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from .masking import LatentMasking
from .networks import CooperativeNetwork

__all__ = ["CooperativeTraining", "both_versions", "frozen_normalisation"]

Batch = tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, torch.Tensor]]


@contextmanager
def frozen_normalisation(*networks: nn.Module) -> Iterator[None]:
    """Within it, batch normalisation uses the statistics of the batch, but learns neither statistics nor parameters."""
    layers = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    tracked = [layer for layer in layers if layer.track_running_stats]
    learned = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    try:
        _learn(tracked, learned, wanted=False)
        yield
    finally:
        _learn(tracked, learned, wanted=True)


def _learn(layers: Sequence[nn.BatchNorm2d], parameters: Sequence[nn.Parameter], *, wanted: bool) -> None:
    for layer in layers:
        layer.track_running_stats = wanted
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def both_versions(batch: Mapping[str, torch.Tensor], device: Any = None, *non_blocking: bool, **_: Any) -> Batch:
    """Joins augmented slices and their un-augmented copies to one batch, in the form of MONAI's `prepare_batch`.

    Args:
        batch: `image`, `label`, `clean_image` and `clean_label`, each `(B, 1, H, W)`.
        device: where the batch goes.
        non_blocking: whether the host need not wait for the copy.

    Returns:
        `image` and `label` `(2B, 1, H, W)`, and for the training module the label as keyword argument.
    """
    image, label = (
        torch.cat([batch[key], batch[f"clean_{key}"]]).to(device, non_blocking=any(non_blocking))
        for key in ("image", "label")
    )
    return image, label, (), {"label": label}


class CooperativeTraining(nn.Module):
    """Maps a batch to its losses; with both maskings left out it is standard training, the paper's baseline.

    The standard pass sees noisy images. The codes of that pass are masked and decoded into corrupted images and
    corrupted segmentations, which are constants of the second pass. All losses have their final weights: their sum is
    what one backward pass minimises.

    Args:
        network: the network to train.
        image_masking: masks image codes by the reconstruction's loss.
        shape_masking: masks shape codes by the segmentation's loss.
        noise: standard deviation of the Gaussian noise on images of the standard pass.
        clamp: keep noisy images in [0, 1].
        reconstruction_weight: weight of the mean squared error of reconstructions.
        complete_labels: train the slow-thinking network on the reference label maps too.
        separate: keep the slow-thinking network's loss from the fast-thinking one.
        hard_normalisation: batch normalisation in the second pass: `reference` freezes it but for the image decoder,
            `frozen` everywhere, `tracked` nowhere.
    """

    def __init__(
        self,
        network: CooperativeNetwork,
        *,
        image_masking: LatentMasking | None = None,
        shape_masking: LatentMasking | None = None,
        noise: float = 0.05,
        clamp: bool = True,
        reconstruction_weight: float = 0.5,
        complete_labels: bool = True,
        separate: bool = False,
        hard_normalisation: Literal["reference", "frozen", "tracked"] = "reference",
    ) -> None:
        super().__init__()
        self.network = network
        self.image_masking = image_masking
        self.shape_masking = shape_masking
        self.noise = noise
        self.clamp = clamp
        self.reconstruction_weight = reconstruction_weight
        self.complete_labels = complete_labels
        self.separate = separate
        self.hard_normalisation = hard_normalisation

    @property
    def names(self) -> list[str]:
        """Names of the losses that `forward` returns."""
        chosen = {
            "seg": True,
            "image": True,
            "gt_shape": self.complete_labels,
            "shape": True,
            "hard_seg": self.image_masking,
            "hard_image": self.image_masking,
            "hard_shape_of_image": self.image_masking,
            "hard_shape": self.shape_masking,
        }
        return [name for name, is_present in chosen.items() if is_present]

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the losses of a batch.

        Args:
            image: `(B, 1, H, W)` in [0, 1]; sizes are multiples of 16.
            label: `(B, 1, H, W)`, class indices.
        """
        target = label[:, 0].long()
        noisy = image + self.noise * torch.randn_like(image)
        codes = self.network.encode(noisy.clamp(0, 1) if self.clamp else noisy)
        losses = self._standard_losses(codes, image=image, target=target)
        corrupted_image, corrupted_logits = self.hard_examples(codes, image=image, target=target)
        return losses | self._hard_losses(corrupted_image, corrupted_logits, image=image, target=target)

    def hard_examples(
        self, codes: tuple[torch.Tensor, torch.Tensor], *, image: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Masks the codes of a pass and decodes them.

        Args:
            codes: image codes and shape codes `(B, K, H/16, W/16)`.
            image: the clean images `(B, 1, H, W)`.
            target: class indices `(B, H, W)`.

        Returns:
            Corrupted images `(B, 1, H, W)` and logits of corrupted segmentations `(B, classes, H, W)`, each `None`
            without its masking.
        """
        draw, paint = self.network.segmentation_decoder, self.network.image_decoder
        image_code, shape_code = (code.detach() for code in codes)
        corrupted_image = corrupted_logits = None
        if self.image_masking is not None:
            image_code = self.image_masking(image_code, lambda code: functional.mse_loss(paint(code), image))
            with torch.no_grad(), frozen_normalisation(paint):
                corrupted_image = paint(image_code)
        if self.shape_masking is not None:
            shape_code = self.shape_masking(shape_code, lambda code: functional.cross_entropy(draw(code), target))
            with torch.no_grad(), frozen_normalisation(draw):
                corrupted_logits = draw(shape_code)
        return corrupted_image, corrupted_logits

    def _reconstruction_loss(self, code: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.reconstruction_weight * functional.mse_loss(self.network.image_decoder(code), image)

    def _shape_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        refined = self.network.refine(logits.detach() if self.separate else logits)
        return functional.cross_entropy(refined, target)

    def _standard_losses(
        self, codes: tuple[torch.Tensor, torch.Tensor], *, image: torch.Tensor, target: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        image_code, shape_code = codes
        logits = self.network.segmentation_decoder(shape_code)
        losses = {
            "seg": functional.cross_entropy(logits, target),
            "image": self._reconstruction_loss(image_code, image),
        }
        if self.complete_labels:
            one_hot = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(image.dtype)
            losses["gt_shape"] = functional.cross_entropy(self.network.complete(one_hot), target)
        return losses | {"shape": self._shape_loss(logits, target)}

    def _hard_losses(
        self,
        corrupted_image: torch.Tensor | None,
        corrupted_logits: torch.Tensor | None,
        *,
        image: torch.Tensor,
        target: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        network = self.network
        frozen = {
            "reference": (network.image_encoder, network.segmentation_decoder),
            "frozen": (network.image_encoder, network.segmentation_decoder, network.image_decoder),
            "tracked": (),
        }[self.hard_normalisation]
        slow = () if self.hard_normalisation == "tracked" else (network.shape_encoder, network.shape_decoder)
        losses = {}
        with frozen_normalisation(*frozen, *slow):
            if corrupted_image is not None:
                image_code, shape_code = network.encode(corrupted_image)
                logits = network.segmentation_decoder(shape_code)
                losses["hard_seg"] = functional.cross_entropy(logits, target)
                losses["hard_image"] = self._reconstruction_loss(image_code, image)
                losses["hard_shape_of_image"] = self._shape_loss(logits, target)
            if corrupted_logits is not None:
                losses["hard_shape"] = self._shape_loss(corrupted_logits, target)
        return losses
