"""An ensemble of networks of any kind: the mean of their class probabilities, and how far they spread."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import nn

from .external import BundleMember
from .mirroring import MirroredInferer
from .shared.validation import InputError
from .shared.weights import load_weights

__all__ = ["Ensemble", "NetworkMember", "SplitMapsd", "own_members"]

PROBE = 16  # voxels; every network takes a cube of so many, where its inferer pads


class NetworkMember(nn.Module):
    """A network of this bundle with its weights and its own inferer.

    Args:
        name: what messages call it.
        network: gives a logit for each class.
        weights: its state dict.
        inferer: makes of the network and a scan `(1, 1, H, W, D)` the probabilities `(1, C, H, W, D)`.
    """

    def __init__(self, name: str, network: nn.Module, *, weights: str, inferer: Inferer) -> None:
        super().__init__()
        self.name = name
        self.network = network.eval()
        self.weights = Path(weights)
        self.inferer = inferer

    def load(self, classes: int) -> None:
        """Loads the weights and tries the network on an empty scan.

        Raises:
            InputError: when the weights do not fit, or the network has another number of classes.
        """
        load_weights(self.network, self.weights)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            count = self.inferer(torch.zeros(1, 1, PROBE, PROBE, PROBE, device=device), self.network).shape[1]
        if count != classes:
            raise InputError([("", f"member {self.name}", f"must have {classes} classes, has {count}")])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns class probabilities `(1, C, H, W, D)` of a scan `(1, 1, H, W, D)`."""
        probabilities: torch.Tensor = convert_to_tensor(self.inferer(image, self.network), track_meta=False)
        return probabilities

    def identity(self) -> dict[str, str]:
        """Returns what tells these weights from others."""
        return {"name": self.name, "sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest()}


def own_members(
    names: Sequence[str], *, kinds: Mapping[str, Mapping[str, Any]], folder: str | Path, flips: Sequence[int] = ()
) -> list[NetworkMember]:
    """Returns networks of this bundle as members, each with the weights that `train_member.yaml` left of it.

    Args:
        names: `<kind>_<anything>`, for example `unet_dice`.
        kinds: `network` and `inferer` of each kind.
        folder: where `member_<name>.pt` lie.
        flips: see `mirroring.MirroredInferer`.

    Raises:
        InputError: when a name is of no kind.
    """
    if unknown := [name for name in names if name.partition("_")[0] not in kinds]:
        rule = f"must begin with one of {', '.join(kinds)}, got {unknown[0]!r}"
        raise InputError([("", "names", rule)])
    chosen = [(name, kinds[name.partition("_")[0]]) for name in names]
    return [
        NetworkMember(
            name,
            copy.deepcopy(kind["network"]),
            weights=str(Path(folder, f"member_{name}.pt")),
            inferer=MirroredInferer(kind["inferer"], flips),
        )
        for name, kind in chosen
    ]


class Ensemble(nn.Module):
    """Unweighted mean and population standard deviation of the members' class probabilities (Noothout et al. 2022).

    Args:
        members: any number of networks of this bundle and of others.
        classes: how many classes there are, with background.

    Raises:
        InputError: when there is no member, or two have one name.
    """

    def __init__(self, members: Sequence[NetworkMember | BundleMember], *, classes: int) -> None:
        super().__init__()
        names = [member.name for member in members]
        if not names or len(set(names)) < len(names):
            raise InputError([("", "members", f"must be one or more with different names, got {names}")])
        self.members = members
        self.networks = nn.ModuleList(members)
        self.classes = classes

    def load(self) -> None:
        """Loads the weights of all members.

        Raises:
            InputError: as `NetworkMember.load` and `external.BundleMember.load`.
        """
        for member in self.members:
            member.load(self.classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns `(1, 2 C, H, W, D)` for a scan `(1, 1, H, W, D)`: the means, then the standard deviations.

        Both in one pass (Welford 1962), so that memory does not grow with the number of members.
        """
        mean = torch.zeros((1, self.classes, *image.shape[2:]), device=image.device)
        squares = torch.zeros_like(mean)
        for count, member in enumerate(self.members, start=1):
            probabilities = member(image)
            off = probabilities - mean
            mean += off / count
            squares += off * (probabilities - mean)
        maps = torch.cat([mean, squares.div_(len(self.members)).clamp_(min=0).sqrt_()], 1)
        return convert_to_dst_type(maps, image, dtype=maps.dtype)[0]

    def identity(self) -> list[dict[str, str]]:
        """Returns what tells this ensemble from others."""
        return [member.identity() for member in self.members]


class SplitMapsd(MapTransform):
    """Splits what an ensemble gave of a case.

    Under `soft` the mean probabilities `(C, H, W, D)`, under `spread` the largest standard deviation of any class
    `(1, H, W, D)`. The key itself loses the standard deviations, so that less has to be brought to the scan's grid.

    Args:
        keys: the channels of `Ensemble.forward`, perhaps with more behind them.
        classes: C.
    """

    def __init__(self, keys: KeysCollection, *, classes: int) -> None:
        super().__init__(keys)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the parts."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps: MetaTensor = item[key]
            mean, spread, rest = maps.split([self.classes, self.classes, len(maps) - 2 * self.classes])
            item |= {key: torch.cat([mean, rest]), "soft": mean, "spread": spread.amax(0, keepdim=True)}
        return item
