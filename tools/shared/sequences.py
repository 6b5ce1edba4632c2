"""A scan's sequences, beside each other or in one volume, as one image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .data import sequence_files
from .naming import stack_of
from .validation import InputError
from .volumes import LoadVolume
from .writing import scan_of_case

__all__ = ["LoadSequencesd", "brain_mask", "channels_of"]


def channels_of(sequences: Sequence[str], *, stack: Sequence[str], count: int, complete: bool = False) -> list[int]:
    """Returns which channels of a volume of several sequences are the wanted ones.

    Args:
        sequences: those that are wanted, in order.
        stack: sequences of a complete volume, in order.
        count: channels of the volume: as many as `stack` has, or as are wanted.
        complete: whether it must be as many as `stack` has.

    Raises:
        InputError: when it has another number of channels, or the complete volume lacks one that is wanted.
    """
    allowed = [stack] if complete else [stack, sequences]
    held = next((list(names) for names in allowed if count == len(names)), [])
    if not held or not set(sequences) <= set(held):
        expected = " or ".join(f"{len(names)} ({', '.join(names)})" for names in allowed)
        raise InputError([("", "image", f"must have {expected} channels, has {count}")])
    return [held.index(name) for name in sequences]


def brain_mask(scan: torch.Tensor) -> torch.Tensor:
    """Where all sequences of a scan `(C, H, W, D)` are non-zero: `(1, H, W, D)`, bool."""
    return (scan != 0).all(0, keepdim=True)


class LoadSequencesd(MapTransform):
    """Loads a scan of several sequences, and where wanted the brain in it.

    Of the path under a key it makes `(C, H, W, D)`, float32, and under `mask_key` the brain `(1, H, W, D)`, uint8:
    where the sequences `mask_from` are non-zero. The path is one of the sequences' files, beside which the others are
    found (see `data.sequence_files`), or a 4D volume of them all. No other file is touched.

    Args:
        keys: the scan; one key.
        sequences: those that make up the scan, in the order of its channels.
        mask_from: those that make up the brain; none: the brain is not wanted.
        stack: sequences of a 4D volume, in order, unless the case has an entry `stack` of its own or its data
            set tells them, see `data.stack_of`; a volume with only those that are needed has these in their order.
        mask_key: where the brain goes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        sequences: Sequence[str],
        mask_from: Sequence[str] = (),
        stack: Sequence[str],
        mask_key: str = "brain",
    ) -> None:
        super().__init__(keys)
        self.sequences = list(sequences)
        self.mask_from = list(mask_from)
        self.stack = list(stack)
        self.mask_key = mask_key
        self.needed = [*sequences, *(name for name in mask_from if name not in sequences)]
        self._load = LoadVolume(image_only=True, dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns `data` with the scan and the brain."""
        item = dict(data)
        for key in self.key_iterator(item):
            path = Path(item[key])
            scan = self._read(path, item.get("stack"))
            scan.meta["source"] = scan.meta["filename_or_obj"]
            scan.meta["filename_or_obj"] = scan_of_case(path, item["case"]) if "case" in item else str(path)
            if self.mask_from:
                channels = [self.needed.index(name) for name in self.mask_from]
                item[self.mask_key] = brain_mask(scan[channels]).to(torch.uint8)
            item[key] = scan[: len(self.sequences)]
        return item

    def _read(self, path: Path, told: Sequence[str] | None) -> MetaTensor:
        """Loads the needed sequences as `(C, H, W, D)`."""
        files = sequence_files(path, self.needed)
        if files is None:
            first = self._load(path)
            stack, complete = stack_of(path, self.stack, told=told)
            channels = channels_of(self.needed, stack=stack, count=first.shape[-1], complete=complete)
            volumes = [first.as_tensor()[..., channel] for channel in channels]
        else:
            loaded = [self._load(file) for file in files.values()]
            first, volumes = loaded[0], [volume.as_tensor() for volume in loaded]
        # Masks are written without channels; MONAI's writer counts the axes by this entry.
        return MetaTensor(torch.stack(volumes), meta={**first.meta, "original_channel_dim": float("nan")})
