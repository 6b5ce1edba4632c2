"""What a training step of the student takes from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["label_and_soft_label"]

Target = dict[str, torch.Tensor]


def label_and_soft_label(
    batch: Mapping[str, torch.Tensor], device: Any = None, *non_blocking: bool, **_: Any
) -> tuple[torch.Tensor, Target | torch.Tensor]:
    """Returns image and target of a batch of `sampling.PatchBatches`, or of whole scans without soft labels.

    Args:
        batch: `image`, `label` and, where there are soft labels, `soft`.
        device: where they go.
        non_blocking: whether the host need not wait for the copy.

    Returns:
        The image and, with soft labels, `{"label", "soft"}`, as `losses.DistillationLoss` takes it, else the label.
    """
    keys = [key for key in ("image", "label", "soft") if key in batch]
    image, *target = (batch[key].to(device, non_blocking=any(non_blocking)) for key in keys)
    return image, dict(zip(("label", "soft"), target, strict=True)) if "soft" in batch else target[0]
