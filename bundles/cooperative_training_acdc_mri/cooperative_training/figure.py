"""The figure of hard examples: what masking makes of training slices, and how the networks take it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import

from .masking import LatentMasking
from .networks import CooperativeNetwork
from .shared.files import atomic_write
from .shared.validation import InputError
from .training import CooperativeTraining

__all__ = ["draw", "draw_hard_examples", "hard_examples"]

logger = logging.getLogger(__name__)

COLOURS = ("black", "#2ec4ff", "#ffb000", "#ff4f81")  # background, RV, MYO, LV
PANEL, HEADING, DPI = 1.3, 0.55, 120

Panels = Mapping[str, Mapping[str, torch.Tensor]]


def hard_examples(
    network: CooperativeNetwork, image: torch.Tensor, *, label: torch.Tensor, maskings: Mapping[str, LatentMasking]
) -> dict[str, dict[str, torch.Tensor]]:
    """Panels of the figure, in groups: the slices themselves, then what each masking makes of them.

    The network is put into evaluation mode: nothing depends on which slices are drawn together.

    Args:
        network: a trained network.
        image: `(B, 1, H, W)` in [0, 1]; sizes are multiples of 16.
        label: `(B, 1, H, W)`, class indices.
        maskings: by the name of their group, each for the image code and for the shape code.

    Returns:
        Groups of panels `(B, 1, H, W)` by their headings: images, or label maps of an integer type.
    """
    network.eval()
    with torch.no_grad():
        codes = network.encode(image)
        groups = {
            "training slices": {
                "image": image,
                "label": label.long(),
                "reconstruction": network.image_decoder(codes[0]),
                "segmentation": _labels(network.segmentation_decoder(codes[1])),
            }
        }
    for name, masking in maskings.items():
        cooperation = CooperativeTraining(network, image_masking=masking, shape_masking=masking)
        corrupted, logits = cooperation.hard_examples(codes, image=image, target=label[:, 0].long())
        assert corrupted is not None
        assert logits is not None
        with torch.no_grad():
            found = network.segmentation_decoder(network.encode(corrupted)[1])
            groups[name] = {
                "corrupted image": corrupted,
                "segmented": _labels(found),
                "refined": _labels(network.refine(found)),
                "corrupted shape": _labels(logits),
            }
    return groups


def _labels(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(1, keepdim=True)


def draw(groups: Panels, path: str | Path) -> None:
    """Draws groups of panels side by side, a row for each slice, and writes them as PNG.

    Args:
        groups: see `hard_examples`; x runs to the right and y down.
        path: file that appears complete or not at all.
    """
    figure_class, _ = optional_import("matplotlib.figure", name="Figure")
    colour_map, _ = optional_import("matplotlib.colors", name="ListedColormap")
    widths = [len(panels) for panels in groups.values()]
    rows = len(next(iter(next(iter(groups.values())).values())))
    figure = figure_class(figsize=(PANEL * sum(widths), PANEL * rows + HEADING), dpi=DPI, layout="constrained")
    parts = figure.subfigures(1, len(groups), width_ratios=widths, squeeze=False)[0]
    for part, (name, panels) in zip(parts, groups.items(), strict=True):
        part.suptitle(name, fontsize=9, fontweight="bold")
        axes = part.subplots(rows, len(panels), squeeze=False)
        for column, (heading, stack) in zip(axes.T, panels.items(), strict=True):
            column[0].set_title(heading, fontsize=7)
            look: dict[str, Any] = (
                {"cmap": "gray", "vmin": 0, "vmax": 1}
                if stack.is_floating_point()
                else {"cmap": colour_map(COLOURS), "vmin": 0, "vmax": len(COLOURS) - 1, "interpolation": "nearest"}
            )
            for panel, array in zip(column, stack[:, 0].cpu().numpy(), strict=True):
                panel.imshow(array.T, **look)
                panel.set_axis_off()
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def draw_hard_examples(
    network: CooperativeNetwork,
    dataset: Sequence[Mapping[str, torch.Tensor]],
    *,
    maskings: Mapping[str, LatentMasking],
    slices: int,
    path: str,
    device: torch.device | str = "cpu",
) -> None:
    """Draws hard examples of some un-augmented training slices, spread evenly over the data set.

    Args:
        network: a trained network.
        dataset: items with `clean_image` and `clean_label`, `(1, H, W)`.
        maskings: see `hard_examples`.
        slices: how many.
        path: PNG to write.
        device: where the network is.

    Raises:
        InputError: when there are not as many slices.
    """
    if slices not in range(1, len(dataset) + 1):
        raise InputError([("", "slices", f"must be 1 to {len(dataset)}, the number of training slices, got {slices}")])
    places = ((np.arange(slices) + 0.5) * len(dataset) / slices).astype(int)
    items = [dataset[place] for place in places.tolist()]
    image, label = (torch.stack([item[key] for item in items]).to(device) for key in ("clean_image", "clean_label"))
    draw(hard_examples(network, image, label=label, maskings=maskings), path)
    logger.info("Hard examples of %d slices: %s", slices, path)
