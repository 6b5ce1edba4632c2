"""Slices of volumes in training and inference of the cooperative-training bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose, LoadImaged, RandFlipd

from cooperative_training.data import SliceDataset
from cooperative_training.inferers import StackInferer
from tests.bundles.cooperative_training.files import volume


class TestSliceDataset:
    @pytest.fixture
    def data(self, tmp_path: Path) -> list[dict[str, str]]:
        """Two volumes of 5 and 2 slices; the slices 0 and 3 of the first have no label."""
        voxels = [
            np.random.RandomState(i).randint(0, 99, (4, 6, depth)).astype(np.int16) for i, depth in ((0, 5), (1, 2))
        ]
        labels = [(volume % 4).astype(np.uint8) for volume in voxels]
        labels[0][..., [0, 3]] = 0
        return [
            {
                "image": str(volume(tmp_path / f"{i}.nii.gz", voxels[i])),
                "label": str(volume(tmp_path / f"{i}_gt.nii.gz", labels[i])),
            }
            for i in range(2)
        ]

    def test_slices_with_labels(self, data: list[dict[str, str]]) -> None:
        dataset = SliceDataset(
            data,
            volume_transform=LoadImaged(["image", "label"], ensure_channel_first=True),
            transform=lambda item: item,
        )
        arrays = [{key: np.asarray(nibabel.load(case[key]).dataobj) for key in case} for case in data]
        expected = [(0, 1), (0, 2), (0, 4), (1, 0), (1, 1)]
        assert len(dataset) == len(expected)
        for item, (case, z) in zip(dataset, expected, strict=True):
            for key, dtype in (("image", torch.float32), ("label", torch.uint8)):
                assert type(item[key]) is torch.Tensor
                assert item[key].dtype == dtype
                assert item[key].is_contiguous()
                np.testing.assert_array_equal(item[key], arrays[case][key][None, ..., z])

    @pytest.mark.parametrize(
        ("share", "kept"), [(0.0, []), (0.2, [(0, 0)]), (0.3, [(0, 0), (0, 3)]), (0.9, [(0, 0), (0, 3)])]
    )
    def test_slices_without_label(self, share: float, kept: list[tuple[int, int]], data: list[dict[str, str]]) -> None:
        """Five slices have labels: one more is a sixth of all, two more are two sevenths."""
        load = LoadImaged(["image", "label"], ensure_channel_first=True)
        dataset = SliceDataset(data, volume_transform=load, transform=lambda item: item, empty=share)
        found = [item["image"] for item in dataset if not item["label"].any()]
        assert len(dataset) == 5 + len(kept)
        for image, (case, z) in zip(found, kept, strict=True):
            np.testing.assert_array_equal(image[0], np.asarray(nibabel.load(data[case]["image"]).dataobj)[..., z])

    def test_volumes_are_read_once_and_slices_changed_anew(self, data: list[dict[str, str]]) -> None:
        load = LoadImaged(["image", "label"], ensure_channel_first=True)
        read: list[dict[str, str]] = []
        seen: list[Any] = []

        def volume_transform(case: dict[str, str]) -> Any:
            read.append(case)
            return load(case)

        dataset = SliceDataset(data, volume_transform=volume_transform, transform=seen.append)
        for index in (0, 0, 1):
            dataset[index]
        assert sorted(case["image"] for case in read) == [case["image"] for case in data]
        assert len(seen) == 3

    def test_seed_reaches_the_random_transform(self, data: list[dict[str, str]]) -> None:
        dataset = SliceDataset(
            data,
            volume_transform=LoadImaged(["image", "label"], ensure_channel_first=True),
            transform=Compose([RandFlipd(["image", "label"], prob=0.5, spatial_axis=0)]),
        )

        def epoch(seed: int) -> torch.Tensor:
            set_rnd(dataset, seed)
            return torch.stack([dataset[index % 5]["image"] for index in range(20)])

        assert torch.equal(epoch(1), epoch(1))
        assert not torch.equal(epoch(1), epoch(2))


class TestStackInferer:
    @pytest.mark.parametrize("at_once", [1, 4, 32])
    def test_equals_slice_by_slice(self, at_once: int) -> None:
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 1))
        volumes = torch.rand(2, 1, 8, 6, 5)
        with torch.no_grad():
            logits = StackInferer(at_once)(volumes, network)
            slices = [network(volumes[..., z]) for z in range(5)]
        torch.testing.assert_close(logits, torch.stack(slices, dim=-1))

    def test_mean_of_mirror_images(self) -> None:
        """A network that sees its place answers for every mirror image: the mean is that of a symmetric place."""
        place = torch.tensor([0.0, 1.0, 2.0, 4.0]).log1p().expand(3, 4)

        def network(slices: torch.Tensor) -> torch.Tensor:
            return torch.stack([place.expand(len(slices), 3, 4), slices[:, 0]], dim=1)

        volume = torch.zeros(1, 1, 3, 4, 2)
        found = StackInferer(flips=[0, 1])(volume, network).softmax(1)[0, 0]
        once = StackInferer()(volume, network).softmax(1)[0, 0]
        assert once[0, :, 0].tolist() == pytest.approx([1 / 2, 2 / 3, 3 / 4, 5 / 6])
        assert found[0, :, 0].tolist() == pytest.approx([2 / 3, 17 / 24, 17 / 24, 2 / 3])

    def test_flips_do_not_matter_to_the_mean(self) -> None:
        network = torch.nn.Conv2d(1, 4, 3, padding=1)
        volume, infer = torch.rand(1, 1, 8, 6, 2), StackInferer(flips=[0, 1])
        with torch.no_grad():
            found, mirrored = infer(volume, network), infer(volume.flip(2, 3), network).flip(2, 3)
        torch.testing.assert_close(found.softmax(1), mirrored.softmax(1))

    def test_slices_per_pass(self) -> None:
        seen: list[tuple[int, ...]] = []

        def network(slices: torch.Tensor, gain: float) -> torch.Tensor:
            seen.append(tuple(slices.shape))
            return gain * slices

        volumes = MetaTensor(torch.rand(1, 1, 4, 4, 10), affine=torch.diag(torch.tensor([1.0, 1, 8, 1])))
        result = StackInferer(4)(volumes, network, gain=2.0)
        assert isinstance(result, MetaTensor)
        assert [shape[0] for shape in seen] == [4, 4, 2]
        torch.testing.assert_close(result.as_tensor(), 2 * volumes.as_tensor())
        torch.testing.assert_close(result.affine, volumes.affine)
