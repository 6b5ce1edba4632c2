"""Whole-volume inference: mean over slices of several orientations, or over shifted tilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from .networks import DilatedCNN
from .shared.validation import InputError

__all__ = ["OrthogonalSliceInferer", "ShiftedTilesInferer"]

Network = Callable[..., torch.Tensor]
Spans = list[tuple[int, int]]


class _MeanInferer(Inferer):
    """What the two inferers share: their settings, and the answer of the network as probabilities."""

    def __init__(self, *, temperature: float, device: torch.device | str | None) -> None:
        super().__init__()
        _check_settings("must be above 0", temperature=temperature > 0)
        self.temperature = temperature
        self.device = device

    def zeros(self, shape: Sequence[int], *, like: torch.Tensor) -> torch.Tensor:
        """Returns a batch for the network: on its device, in the type that sums of `like` have."""
        device = like.device if self.device is None else self.device
        return torch.zeros(shape, dtype=_sum_type(like), device=device)

    def probabilities(self, logits: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Returns `softmax(logits / temperature)` over the classes, in the type that sums of `like` have."""
        return (logits.to(_sum_type(like)) / self.temperature).softmax(1)


class OrthogonalSliceInferer(_MeanInferer):
    """Mean of the probabilities that a 2D network gives for the slices of several orientations.

    `p = mean over axes of softmax(logits / temperature)`, where each slice goes through the network whole (Noothout et
    al. 2022, J. Med. Imaging 9(5) 052407). The reference implementation never shows the last slice of an axis to the
    network; here all are. Besides the volumes and the result, memory holds one batch of slices.

    Args:
        axes: spatial axes across which the volumes are cut into slices, 0 to 2; axis `k` alone gives the slices
            `volume.select(k + 2, i)`.
        margin: pixels of zeros around each slice, those that a network without padding takes off each side: half its
            receptive field, rounded down. 0 for a network whose output has the size of its input.
        divisor: zeros at the end of each slice axis bring its size to a multiple of it, for a network that halves the
            resolution; what it answers there is cut off. The reference implementation adds as many again to a size
            that is a multiple already, which changes what such a network answers near that border.
        temperature: what logits are divided by ahead of the softmax.
        batch_voxels: greatest number of pixels, zeros included, of a batch of slices; one slice may have more. The
            default suits the caches of a CPU; a GPU takes more.
        device: where the network is, if not where the volumes are.

    Raises:
        InputError: if an axis is another or is repeated, there is none, or a number is too small.
    """

    def __init__(
        self,
        axes: Sequence[int] = (0, 1, 2),
        *,
        margin: int = 0,
        divisor: int = 1,
        temperature: float = 1.0,
        batch_voxels: int = 2**16,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(temperature=temperature, device=device)
        fine = bool(axes) and len(set(axes)) == len(axes) and set(axes) <= {0, 1, 2}
        _check_settings(f"must be one or more of 0, 1 and 2, none of them twice, got {list(axes)}", axes=fine)
        _check_settings("must not be negative", margin=margin >= 0)
        _check_settings("must be 1 or more", divisor=divisor >= 1, batch_voxels=batch_voxels >= 1)
        self.axes = tuple(axes)
        self.margin = margin
        self.divisor = divisor
        self.batch_voxels = batch_voxels

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the mean probabilities.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: gives logits `(N, classes, h, w)` for slices `(N, C, h + 2 * margin, w + 2 * margin)`; a
                `DilatedCNN` gives them `within_zeros`, which is faster.
            args: more arguments of the network.
            kwargs: likewise.

        Returns:
            `(B, classes, H, W, D)`, float64 for such volumes, else float32, also where autocast lets the network answer
            in half precision.

        Raises:
            InputError: if the volumes are empty or have other than five dimensions, or the network's answer has
                another size than `margin` says.
        """
        volumes = _checked_volumes(inputs)
        steps = [
            (index, axis, span)
            for index, axis in product(range(len(volumes)), self.axes)
            for span in self._spans(volumes.shape[2:], axis)
        ]
        sums: torch.Tensor | None = None
        for index, axis, (start, stop) in steps:
            slices = volumes[index].movedim(axis + 1, 0)[start:stop]
            found = self.probabilities(self._answer(network, slices, *args, **kwargs), volumes)
            sums = _zeros_for(volumes, found.shape[1]) if sums is None else sums
            sums[index].movedim(axis + 1, 0)[start:stop] += found.to(sums.device)
        assert sums is not None
        return _like(sums.div_(len(self.axes)), inputs)

    def _padded_size(self, size: Sequence[int]) -> list[int]:
        return [-(-(length + 2 * self.margin) // self.divisor) * self.divisor for length in size]

    def _spans(self, size: Sequence[int], axis: int) -> Spans:
        height, width = self._padded_size([length for other, length in enumerate(size) if other != axis])
        return _spans(size[axis], max(self.batch_voxels // (height * width), 1))

    def _answer(self, network: Network, slices: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the logits of slices `(N, C, h, w)`."""
        if isinstance(network, DilatedCNN) and self.margin == network.receptive_field // 2:
            return network.within_zeros(self._batch(slices, size=slices.shape[2:]))
        size = self._padded_size(slices.shape[2:])
        logits = network(self._batch(slices, size=size, start=self.margin), *args, **kwargs)
        return self._cropped(logits, slices.shape[2:])

    def _batch(self, slices: torch.Tensor, *, size: Sequence[int], start: int = 0) -> torch.Tensor:
        """Returns slices `(N, C, h, w)` with zeros around them."""
        count, channels, height, width = slices.shape
        # Channels last: on a CPU, PyTorch's first convolution of a single channel is many times slower otherwise.
        batch = self.zeros((count, *size, channels), like=slices).movedim(-1, 1)
        batch[..., start : start + height, start : start + width] = slices
        return batch

    def _cropped(self, logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        expected = [length - 2 * self.margin for length in self._padded_size(size)]
        if list(logits.shape[2:]) != expected:
            rule = (
                f"{self.margin} does not fit the network, which answers {list(logits.shape[2:])} instead of {expected}"
            )
            raise InputError([("", "margin", rule)])
        return logits[..., : size[0], : size[1]]


class ShiftedTilesInferer(_MeanInferer):
    """Mean of the probabilities that a 3D network gives for tilings of the volume, each shifted by one voxel more.

    Tiling `i` is without overlap and starts at voxel `(i, i, i)`; zeros fill up the tiles at the end of an axis. A
    voxel whose least index is `k` lies in `min(k + 1, shifts)` tilings; its probabilities are the mean of theirs
    (Noothout et al. 2022, J. Med. Imaging 9(5) 052407). The reference implementation divides by `shifts` everywhere, so
    its probabilities fade towards the borders where an axis starts. Besides the volumes and the result, memory holds
    one batch of tiles, and 2 bytes a voxel for a moment.

    Args:
        tile: edge of a tile in voxels, or one for each axis; a multiple of what the network's resolutions ask for.
        shifts: tilings, at most as many as the tile's shortest edge has voxels. 1 stands for a plain tiling.
        temperature: what logits are divided by ahead of the softmax.
        batch: greatest number of tiles that the network gets at a time.
        device: where the network is, if not where the volumes are.

    Raises:
        InputError: if a number is too small, there are more shifts than a tile allows, or other than three edges.
    """

    def __init__(
        self,
        tile: int | Sequence[int],
        *,
        shifts: int = 8,
        temperature: float = 1.0,
        batch: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(temperature=temperature, device=device)
        edges = (tile,) * 3 if isinstance(tile, int) else tuple(tile)
        fine = len(edges) == 3 and min(edges) >= 1
        _check_settings(f"must be one edge or three, of a voxel or more, got {tile}", tile=fine)
        _check_settings(f"must be from 1 to {min(edges)}, got {shifts}", shifts=1 <= shifts <= min(edges))
        _check_settings("must be 1 or more", batch=batch >= 1)
        self.tile = edges
        self.shifts = shifts
        self.batch = batch

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the mean probabilities.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: gives logits `(N, classes, *tile)` for tiles `(N, C, *tile)`.
            args: more arguments of the network.
            kwargs: likewise.

        Returns:
            `(B, classes, H, W, D)`, float64 for such volumes, else float32, also where autocast lets the network answer
            in half precision.

        Raises:
            InputError: if the volumes are empty or have other than five dimensions, or the network's answer has
                another size than the tile.
        """
        volumes = _checked_volumes(inputs)
        places = list(self._places(volumes))
        sums: torch.Tensor | None = None
        for start, stop in _spans(len(places), self.batch):
            regions = [volumes[place] for place in places[start:stop]]
            logits = network(self._padded(regions), *args, **kwargs)
            if tuple(logits.shape[2:]) != self.tile:
                rule = f"the network answers {list(logits.shape[2:])} for a tile of {list(self.tile)}"
                raise InputError([("", "tile", rule)])
            found = self.probabilities(logits, volumes)
            sums = _zeros_for(volumes, found.shape[1]) if sums is None else sums
            for place, tile in zip(places[start:stop], found.to(sums.device), strict=True):
                region = sums[place]
                region += tile[_corner(region.shape)]
        assert sums is not None
        return _like(sums.div_(self._visits(sums)), inputs)

    def _places(self, volumes: torch.Tensor) -> Iterator[tuple[int | slice, ...]]:
        """Yields the index of each tile that starts inside the volume; beyond its end there is nothing to cut off."""
        for index, shift in product(range(len(volumes)), range(self.shifts)):
            axes = zip(volumes.shape[2:], self.tile, strict=True)
            for starts in product(*(range(shift, size, edge) for size, edge in axes)):
                regions = (slice(first, first + edge) for first, edge in zip(starts, self.tile, strict=True))
                yield index, slice(None), *regions

    def _padded(self, regions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns a batch of tiles, with zeros at the end of what lies at the volume's end."""
        first = regions[0]
        batch = self.zeros((len(regions), len(first), *self.tile), like=first)
        for tile, region in zip(batch, regions, strict=True):
            tile[_corner(region.shape)] = region
        return batch

    def _visits(self, volumes: torch.Tensor) -> torch.Tensor:
        """Returns in how many tilings each voxel lies, `(H, W, D)`."""
        along = (torch.arange(1, size + 1, device=volumes.device).clamp(max=self.shifts) for size in volumes.shape[2:])
        height, width, depth = (steps.to(torch.int16) for steps in along)
        return height[:, None, None].minimum(width[:, None]).minimum(depth)


def _check_settings(rule: str, **fine: bool) -> None:
    """Raises an `InputError` that names the settings that are not fine."""
    if not all(fine.values()):
        raise InputError(("", name, rule) for name, is_fine in fine.items() if not is_fine)


def _checked_volumes(inputs: torch.Tensor) -> torch.Tensor:
    if inputs.ndim != 5 or not inputs.numel():
        rule = f"must have five dimensions (B, C, H, W, D), none of them 0, got {list(inputs.shape)}"
        raise InputError([("", "image", rule)])
    volumes: torch.Tensor = convert_to_tensor(inputs, track_meta=False)
    return volumes


def _sum_type(volumes: torch.Tensor) -> torch.dtype:
    return torch.float64 if volumes.dtype == torch.float64 else torch.float32


def _zeros_for(volumes: torch.Tensor, classes: int) -> torch.Tensor:
    return volumes.new_zeros(len(volumes), classes, *volumes.shape[2:], dtype=_sum_type(volumes))


def _spans(count: int, largest: int) -> Spans:
    """Cuts `count` items into the fewest batches of at most `largest`, as even as they can be.

    So none has a single slice unless `largest` is below 3: PyTorch takes a slow path for one small image on a CPU.
    """
    batches = -(-count // largest)
    return list(pairwise(count * index // batches for index in range(batches + 1)))


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    """Returns the index of what has that shape in the low corner of a tile `(C, h, w, d)`."""
    return (slice(None), *(slice(size) for size in shape[1:]))


def _like(mean: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return convert_to_dst_type(mean, inputs, dtype=mean.dtype)[0]
