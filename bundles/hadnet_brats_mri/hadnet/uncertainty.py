"""Uncertainty by Monte-Carlo dropout, its maps of the tumour regions, and the score that BraTS 2019 gives them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import train_mode
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import nn

from .shared.regions import REGIONS
from .shared.validation import InputError

__all__ = ["THRESHOLDS", "MonteCarloDropout", "UncertaintyMapsd", "region_uncertainty", "uncertainty_scores"]

THRESHOLDS = tuple(2.5 * step for step in range(41))


class MonteCarloDropout(Inferer):
    """Averages the class probabilities of several passes, with dropout on or of mirror images.

    In passes with dropout only `nn.Dropout3d` layers are in train mode; every other layer keeps the mode that it has,
    in MONAI's evaluators eval mode. No gradients are recorded.

    Args:
        samples: number of passes with dropout (100 in the paper); 0: one pass as the network stands.
        flips: spatial axes; every pass becomes one for each set of them that can be mirrored, none of them included.

    Raises:
        InputError: when `samples` is negative, or `flips` are not different axes from 0 to 2.
    """

    def __init__(self, samples: int = 0, *, flips: Sequence[int] = ()) -> None:
        super().__init__()
        if samples < 0:
            raise InputError([("", "samples", f"must be 0 or more, got {samples}")])
        if len(set(flips)) < len(flips) or not set(flips) <= {0, 1, 2}:
            raise InputError([("", "test_time_flips", f"must be different axes from 0 to 2, got {list(flips)}")])
        self.samples = samples
        self.mirrored = [[axis + 2 for axis in axes] for n in range(len(flips) + 1) for axes in combinations(flips, n)]

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the network's logits, or the logarithm of the mean probabilities, of which the softmax is the mean.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: gives logits `(B, classes, H, W, D)`.
            args: more arguments of the network.
            kwargs: likewise.

        Returns:
            `(B, classes, H, W, D)`. The logarithm is of the smallest normal float32 or more (-87.3), thus finite.

        Raises:
            InputError: when the network has no dropout layer to sample with.
        """
        if not self.samples and len(self.mirrored) == 1:
            logits: torch.Tensor = network(inputs, *args, **kwargs)
            return logits
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout3d)] if self.samples else []
        if self.samples and not layers:
            raise InputError([("", "samples", f"must be 0 for a network without dropout, got {self.samples}")])
        passes = max(self.samples, 1) * self.mirrored
        with train_mode(*layers), torch.no_grad():
            answers = (network(inputs.flip(axes), *args, **kwargs).float().softmax(1).flip(axes) for axes in passes)
            mean = reduce(torch.add, answers) / len(passes)
        return mean.clamp_min(torch.finfo(torch.float32).tiny).log()


def region_uncertainty(probabilities: torch.Tensor) -> dict[str, torch.Tensor]:
    """Entropy of each region's probability in every voxel, in percent of the largest one possible.

    The probability p of a region is the sum over its classes, so that voxels outside the field of view, where
    interpolation left all classes at 0, are certain. The uncertainty is 100 H(p) / ln 2 with the binary entropy
    H(p) = - p ln p - (1 - p) ln(1 - p).

    Args:
        probabilities: of the classes, `(4, H, W, D)`.

    Returns:
        `(1, H, W, D)` for each of `REGIONS`, float32 from 0 to 100.
    """
    plain: torch.Tensor = convert_to_tensor(probabilities, track_meta=False).float()
    maps = {}
    for region, classes in REGIONS.items():
        share = plain[list(classes)].sum(0, keepdim=True).clamp(0, 1)
        entropy = torch.special.entr(share) + torch.special.entr(1 - share)
        maps[region] = (entropy * (100 / math.log(2))).clamp_max(100)
    return maps


class UncertaintyMapsd(MapTransform):
    """Adds the maps of `region_uncertainty` as `uncertainty_ET`, `uncertainty_TC` and `uncertainty_WT`.

    They have the metadata of the probabilities, which stay. The place of this transform is after the softmax and the
    return to the scan's own grid, and before the classes are chosen.

    Args:
        keys: key of the class probabilities, a `MetaTensor` `(4, H, W, D)`.
        allow_missing_keys: whether items without it pass unchanged.
    """

    def __init__(self, keys: str = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the item with the three maps."""
        result = dict(data)
        for key in self.key_iterator(result):
            probabilities: MetaTensor = data[key]
            for region, values in region_uncertainty(probabilities).items():
                result[f"uncertainty_{region}"] = convert_to_dst_type(values, probabilities, dtype=values.dtype)[0]
        return result


def uncertainty_scores(
    prediction: torch.Tensor,
    label: torch.Tensor,
    *,
    uncertainty: torch.Tensor,
    brain: torch.Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Score of one region's uncertainty in the BraTS 2019 challenge (Mehta et al., arXiv:2005.14262).

    At each threshold voxels of the brain with a greater uncertainty are left out. Good uncertainty raises the Dice of
    the others (1 where both masks are empty) and filters few true positives and true negatives; their filtered ratios
    FTP and FTN are relative to the count at the last threshold, and 0 if that is 0. The curves' areas over the
    thresholds are found by the trapezoid rule and divided by 100.

    Args:
        prediction: mask of the region, `(H, W, D)` or of any one shape.
        label: mask of the region, likewise.
        uncertainty: from 0 to 100, likewise.
        brain: mask, likewise; all else is left out.
        thresholds: from 0 to 100, ascending.

    Returns:
        The areas `dice_auc`, `ftp_auc` and `ftn_auc`, and `score`, the mean of `dice_auc`, 1 - `ftp_auc` and
        1 - `ftn_auc`; each from 0 to 1.
    """
    taus = torch.tensor(thresholds, dtype=torch.float64)
    volumes = (prediction, label, uncertainty, brain)
    found, true, doubt, inside = (convert_to_tensor(volume, track_meta=False, device="cpu") for volume in volumes)
    inside = inside.bool()
    outcome = 2 * true[inside].long() + found[inside].long()
    first = torch.bucketize(doubt[inside].double(), taus)  # the first threshold that keeps the voxel
    table = torch.bincount(4 * first + outcome, minlength=4 * (len(taus) + 1)).view(-1, 4)
    tn, fp, fn, tp = table[:-1].cumsum(0).double().T
    size = 2 * tp + fp + fn
    curves = {
        "dice_auc": torch.where(size > 0, 2 * tp / size, 1.0),
        "ftp_auc": (tp[-1] - tp) / tp[-1].clamp_min(1),
        "ftn_auc": (tn[-1] - tn) / tn[-1].clamp_min(1),
    }
    areas = {name: float(torch.trapezoid(curve, taus)) / 100 for name, curve in curves.items()}
    return areas | {"score": (areas["dice_auc"] + 2 - areas["ftp_auc"] - areas["ftn_auc"]) / 3}
