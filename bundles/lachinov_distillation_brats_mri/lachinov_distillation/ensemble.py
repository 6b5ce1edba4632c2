"""An ensemble of networks and of what others have left on disk: the mean of their soft predictions, and its spread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import correct_nifti_header_if_necessary
from monai.inferers import Inferer
from monai.transforms import DivisiblePad, MapTransform
from torch import nn

from .conversions import class_probabilities, region_probabilities
from .labelling import as_bytes, discretise_classes, remove_small_components
from .labels import CHANNELS, mapped
from .shared.evaluation import voxel_volume
from .shared.geometry import same_grid
from .shared.regions import CLASSES, VALUES
from .shared.validation import Case, InputError, case_name
from .shared.volumes import LoadVolume, VolumeError, read_volume
from .shared.weights import load_weights

__all__ = ["Ensemble", "EnsembleLabeld", "FileMember", "NetworkMember"]

KINDS = {"regions": CHANNELS, "classes": CLASSES}
PROBE = 32  # voxels; every network takes a cube of so many

Problem = tuple[str, str, str]


class NetworkMember(nn.Module):
    """A network with its own normalisation, padding and inferer.

    Args:
        name: what messages call it.
        network: takes `(B, S, H, W, D)`, one channel for each sequence.
        weights: its state dict.
        normalize: dictionary transform of `image`.
        inferer: returns probabilities of WT, TC and ET.
        divisor: what the sizes are padded to multiples of, before normalisation.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        weights: str,
        normalize: Callable[[dict[str, Any]], Mapping[str, Any]],
        inferer: Inferer,
        divisor: int = 1,
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network.eval()
        self.weights = Path(weights)
        self.normalize = normalize
        self.inferer = inferer
        self.pad = DivisiblePad(divisor)

    def load(self, sequences: int) -> None:
        """Loads the weights and tries the network on an empty scan.

        Raises:
            InputError: when the weights do not fit, or the network has another number of outputs than it should.
        """
        load_weights(self.network, self.weights)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            count = self.inferer(torch.zeros(1, sequences, PROBE, PROBE, PROBE, device=device), self.network).shape[1]
        if count != len(CHANNELS):
            rule = f"must have {len(CHANNELS)} outputs ({', '.join(CHANNELS)}), has {count}"
            raise InputError([("", f"member {self.name}", rule)])

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """Returns class probabilities `(1, 4, H, W, D)` of a scan `(1, S, H, W, D)` as it was measured."""
        padded = self.pad(scan[0])
        image = self.normalize({"image": padded})["image"]
        probabilities = class_probabilities(self.inferer(torch.as_tensor(image)[None], self.network).float())
        before = [(large - small) // 2 for large, small in zip(padded.shape[1:], scan.shape[2:], strict=True)]
        inside = tuple(slice(start, start + size) for start, size in zip(before, scan.shape[2:], strict=True))
        return probabilities[(slice(None), slice(None), *inside)]

    def identity(self) -> dict[str, str]:
        """Returns what tells these weights from others."""
        return {"name": self.name, "sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest()}


class FileMember:
    """Predictions of another program, as NIfTI files on the grids of the scans.

    Args:
        name: what messages call it.
        files: path of a file with `{case}` for the case's name.
        predicts: `labels` for label maps; `regions` (WT, TC, ET) or `classes` (background, NCR, ED, ET) for
            probabilities, channels on the first or the last axis, from 0 to 1, or to 255 in integers.
        label_order: classes of the values 1, 2, ... of label maps.
    """

    def __init__(
        self, name: str, files: str, *, predicts: str, label_order: Sequence[str] = ("NCR", "ED", "ET", "ET")
    ) -> None:
        if predicts not in ("labels", *KINDS):
            kinds = ", ".join(("labels", *KINDS))
            raise InputError([("", f"member {name}", f"must predict one of {kinds}, got {predicts}")])
        if unknown := sorted(set(label_order) - set(CLASSES[1:])):
            raise InputError([("", f"member {name}", f"unknown class {', '.join(unknown)}")])
        self.name = name
        self.files = files
        self.predicts = predicts
        self.label_order = list(label_order)
        self._load = LoadVolume(image_only=True)

    def path(self, case: str) -> Path:
        """Returns the file of a case."""
        return Path(self.files.format(case=case))

    def problems(self, case: str, reference: Any) -> list[Problem]:
        """Returns what is wrong with the file of a case, from its header and its values."""
        path = self.path(case)
        try:
            found = read_volume(path)
        except VolumeError as error:
            return [(case, str(path), f"prediction of member {self.name} {error}")]
        grid, shape = reference.shape[:3], found.shape
        channels = () if self.predicts == "labels" else (len(KINDS[self.predicts]),)
        if shape not in ((*grid, *channels), (*channels, *grid)):
            wanted = f"{' x '.join(map(str, (*grid, *channels)))}"
            return [(case, str(path), f"shape {shape} of member {self.name} does not fit the scan's: {wanted}")]
        if not same_grid(reference.affine, found.affine, shape=grid):
            return [(case, str(path), f"affine of member {self.name} differs from the scan's")]
        if self.predicts != "labels":
            lowest, highest = (float(value) for value in self._scaled(case).aminmax())
            rule = f"probabilities of member {self.name} must lie between 0 and 1, found {lowest:.3g} to {highest:.3g}"
            return [] if lowest >= 0 and highest <= 1 + 1e-3 else [(case, str(path), rule)]
        values = set(torch.unique(self._load(path).as_tensor()).tolist())
        known = set(range(len(self.label_order) + 1))
        rule = f"label values of member {self.name} must be among {sorted(known)}, found {sorted(values)[:10]}"
        return [] if values <= known else [(case, str(path), rule)]

    def probabilities(self, case: str, shape: Sequence[int]) -> torch.Tensor:
        """Returns class probabilities `(1, 4, H, W, D)` of a case whose scan is `(H, W, D)`."""
        if self.predicts == "labels":
            label = mapped(self._load(self.path(case)).as_tensor(), self.label_order)
            return torch.stack([label == value for value in VALUES])[None].float()
        scaled = self._scaled(case)
        channels = (scaled if scaled.shape[1:] == tuple(shape) else scaled.movedim(-1, 0))[None]
        return class_probabilities(channels) if self.predicts == "regions" else channels

    def _scaled(self, case: str) -> torch.Tensor:
        """Probabilities as their file has them, integers divided by 255."""
        whole_numbers = nibabel.load(self.path(case)).get_data_dtype().kind in "iu"
        return self._load(self.path(case)).as_tensor().float() / (255 if whole_numbers else 1)

    def identity(self) -> dict[str, str]:
        """Returns what tells these predictions from others."""
        return {"name": self.name, "files": self.files}


class Ensemble(nn.Module):
    """Sums of what its networks predict of a scan; `EnsembleLabeld` adds what its other members have on disk.

    Args:
        members: any number of either kind.
        sequences: how many a scan has.

    Raises:
        InputError: when there is no member, or two have one name.
    """

    def __init__(self, members: Sequence[NetworkMember | FileMember], *, sequences: int) -> None:
        super().__init__()
        names = [member.name for member in members]
        if not names or len(set(names)) < len(names):
            raise InputError([("", "members", f"must be one or more with different names, got {names}")])
        self.members = list(members)
        self.networks = nn.ModuleList(member for member in members if isinstance(member, NetworkMember))
        self.files = [member for member in members if isinstance(member, FileMember)]
        self.sequences = sequences

    def load(self) -> None:
        """Loads the weights of all networks.

        Raises:
            InputError: as `NetworkMember.load`.
        """
        for member in self.members:
            if isinstance(member, NetworkMember):
                member.load(self.sequences)

    def check(self, cases: Sequence[Case]) -> None:
        """Checks the files of all members that are no networks.

        Raises:
            InputError: when one is missing, or does not fit its scan's grid, or has other channels or values.
        """
        problems: list[Problem] = []
        for case in cases if self.files else ():
            reference = correct_nifti_header_if_necessary(nibabel.load(case["image"]))  # as all readers of scans
            problems += [problem for member in self.files for problem in member.problems(case_name(case), reference)]
        if problems:
            raise InputError(problems)

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """Returns sums over the networks for a scan `(1, S, H, W, D)`.

        `(1, 4, H, W, D)`: probabilities of NCR, ED and ET, and 1 - sum of squares of all probabilities; all are 0 where
        every network is sure of background.
        """
        total = scan.new_zeros((1, 4, *scan.shape[2:]), dtype=torch.float32)
        for member in self.networks:
            total += contribution(member(scan))
        return total

    def identity(self) -> list[dict[str, str]]:
        """Returns what tells this ensemble from others."""
        return [member.identity() for member in self.members]


def contribution(classes: torch.Tensor) -> torch.Tensor:
    """What a member with class probabilities `(1, 4, H, W, D)` adds to the sums of an `Ensemble`."""
    return torch.cat([classes[:, 1:], 1 - classes.square().sum(1, keepdim=True)], 1)


class EnsembleLabeld(MapTransform):
    """Makes of an ensemble's sums, back on the scan's grid, its annotation.

    Under the key itself: the label map `(1, H, W, D)`, uint8, the class of the highest mean probability. Under `soft`:
    the mean probabilities of WT, TC and ET `(3, H, W, D)`, uint8, 0 to 255. Under `disagreement` `(1, H, W, D)`,
    float32: the variance of the members' probabilities, summed over the classes; 0 where they are one, at most 1 - 1/K
    for K members.

    Args:
        keys: sums `(4, H, W, D)` of `Ensemble.forward`.
        ensemble: the ensemble.
        minimum_enhancing: a smaller volume of ET in mm^3 becomes NCR; 0: as in the reference, none is too small.
        fraction: connected components that are a smaller part of the tumour are removed; 0: none.
    """

    def __init__(
        self, keys: KeysCollection, *, ensemble: Ensemble, minimum_enhancing: float = 0, fraction: float = 0
    ) -> None:
        super().__init__(keys)
        self.ensemble = ensemble
        self.minimum_enhancing = minimum_enhancing
        self.fraction = fraction

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the annotation."""
        item = dict(data)
        for key in self.key_iterator(item):
            sums: MetaTensor = item[key]
            total = sums.as_tensor()[None]
            for member in self.ensemble.files:
                total = total + contribution(member.probabilities(item["case"], total.shape[2:]).to(total.device))
            count = len(self.ensemble.members)
            tumour, impurity = total[:, :3], total[:, 3:]
            votes = torch.cat([count - tumour.sum(1, keepdim=True), tumour], 1)  # equal ones stay equal
            mean = votes / count
            disagreement = (1 - impurity / count - mean.square().sum(1, keepdim=True)).clamp(min=0)
            soft = as_bytes(region_probabilities(mean))
            label = self._cleaned(discretise_classes(votes[0]), voxel=voxel_volume(sums))
            made = {key: label[None], "soft": soft[0], "disagreement": disagreement[0]}
            item |= {name: MetaTensor(volume, meta=sums.meta) for name, volume in made.items()}
        return item

    def _cleaned(self, label: torch.Tensor, *, voxel: float) -> torch.Tensor:
        enhancing = label == VALUES[3]
        if int(enhancing.count_nonzero()) * voxel < self.minimum_enhancing:
            label = torch.where(enhancing, VALUES[1], label)
        return remove_small_components(label, fraction=self.fraction) if self.fraction else label
