"""From the overlapping regions WT, TC, ET to the classes that make them up, and back."""

from __future__ import annotations

import torch

__all__ = ["class_probabilities", "region_probabilities"]


def class_probabilities(regions: torch.Tensor) -> torch.Tensor:
    """Returns the probabilities of the classes background, necrosis, oedema, enhancing tumour.

    A region counts as large as the largest inside it: with e = ET, c = max(TC, e) and w = max(WT, c) the classes are
    1 - w, c - e, w - c and e. They add up to 1 whether the regions are nested or not.

    Args:
        regions: probabilities of WT, TC, ET, `(B, 3, ...)`.

    Returns:
        `(B, 4, ...)`.
    """
    whole, core, enhancing = regions.unbind(1)
    core = torch.maximum(core, enhancing)
    whole = torch.maximum(whole, core)
    return torch.stack([1 - whole, core - enhancing, whole - core, enhancing], dim=1)


def region_probabilities(classes: torch.Tensor) -> torch.Tensor:
    """Returns the probabilities of the regions: WT = necrosis + oedema + ET, TC = necrosis + ET, ET.

    Args:
        classes: probabilities of background, necrosis, oedema, enhancing tumour, `(B, 4, ...)`.

    Returns:
        `(B, 3, ...)`.
    """
    _, necrosis, oedema, enhancing = classes.unbind(1)
    core = necrosis + enhancing
    return torch.stack([core + oedema, core, enhancing], dim=1)
