"""The final label map of ensemble_kd_kits_ct: the second stage inside what the first one found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from ensemble_kd.postprocessing import LabelInsideOrgand, organ_mask
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
BLOBS = [np.s_[0:4, 0:3, 0:3], np.s_[7:9, 5:8, 0:3], np.s_[11:12, 9:10, 7:8]]


def volume(*boxes: tuple[slice, slice, slice], value: int = 1) -> torch.Tensor:
    """Label map `(12, 10, 8)` with one value in boxes."""
    found = torch.zeros((12, 10, 8), dtype=torch.uint8)
    for box in boxes:
        found[box] = value
    return found


def test_largest_components_of_the_reference() -> None:
    """Of 53 components, two of which are the second largest; and cubes of five voxels around all of their voxels."""
    mask = torch.from_numpy(GOLDEN["post.mask"])
    np.testing.assert_array_equal(organ_mask(mask), GOLDEN["post.largest2"])
    np.testing.assert_array_equal(organ_mask(mask, dilate=2), GOLDEN["post.dilate5"])


@pytest.mark.parametrize("blobs", range(4))
@pytest.mark.parametrize("num_components", [1, 2])
def test_fewer_components_than_asked_for(blobs: int, num_components: int) -> None:
    mask = volume(*BLOBS[:blobs]).bool()
    expected = volume(*BLOBS[: min(blobs, num_components)]).bool()
    assert torch.equal(organ_mask(mask, num_components=num_components), expected)


def test_components_touch_at_corners() -> None:
    """Three cubes in a diagonal row are one component: with a fourth one apart, all four stay."""
    cubes = [np.s_[i : i + 2, i : i + 2, i : i + 2] for i in (0, 2, 4)] + [np.s_[10:11, 0:1, 0:1]]
    assert torch.equal(organ_mask(volume(*cubes).bool()), volume(*cubes).bool())


def test_components_of_equal_size() -> None:
    """Of 47 single voxels and two that touch, these stay, and the voxel that comes first in memory."""
    last = np.s_[9:11, 9:10, 6:7]
    assert torch.equal(organ_mask(volume(np.s_[::3, ::3, ::3], last).bool()), volume(np.s_[:1, :1, :1], last).bool())


def probabilities(label: torch.Tensor, organ: torch.Tensor | None = None) -> MetaTensor:
    """Softmax-like channels of a label map, and the organ's probability."""
    channels = [0.2 + 0.4 * (label == value) for value in range(3)] + ([] if organ is None else [organ])
    affine = torch.diag(torch.tensor([0.8, 0.8, 2.5, 1.0]))
    return MetaTensor(torch.stack(channels), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


def test_label_inside_the_organ() -> None:
    """Of three regions where the organ is more likely than not, the smallest goes, whatever its label."""
    label = volume() + 1
    label[:, :, 1] = 2
    label[0] = 0
    organ = 0.5 + 0.1 * volume(*BLOBS)
    pred = probabilities(label, organ)
    before = pred.clone()
    found = LabelInsideOrgand("pred")({"pred": pred, "other": 1})
    assert torch.equal(found["pred"][0].as_tensor(), label * volume(*BLOBS[:2]))
    assert found["pred"].shape == (1, 12, 10, 8)
    assert found["pred"].dtype == torch.uint8
    assert torch.equal(found["pred"].affine, pred.affine)
    assert found["pred"].meta["filename_or_obj"] == "scan.nii.gz"
    assert found["other"] == 1
    assert torch.equal(pred, before)


def test_number_of_components_and_growth() -> None:
    label, organ = volume() + 2, 1.0 * volume(*BLOBS)
    found = LabelInsideOrgand("pred", num_components=1, dilate=1)({"pred": probabilities(label, organ)})["pred"]
    assert torch.equal(found[0].as_tensor(), volume(np.s_[0:5, 0:4, 0:4], value=2))
    three = LabelInsideOrgand("pred", num_components=3)({"pred": probabilities(label, organ)})["pred"]
    assert torch.equal(three[0].as_tensor(), volume(*BLOBS, value=2))


def test_no_organ_found() -> None:
    found = LabelInsideOrgand("pred", dilate=2)({"pred": probabilities(volume() + 1, 0.5 * (volume() + 1))})["pred"]
    assert not found.any()


@pytest.mark.parametrize("organ", [None, torch.zeros(12, 10, 8)])
def test_label_without_clip(organ: torch.Tensor | None) -> None:
    """The organ's channel, where there is one, is no class."""
    label = volume(BLOBS[0]) + 2 * volume(BLOBS[1])
    found = LabelInsideOrgand("pred", clip_source="none")({"pred": probabilities(label, organ)})["pred"]
    assert torch.equal(found[0].as_tensor(), label)


def test_label_inside_the_reference() -> None:
    """Neither components nor growth: where the reference labels are above 0, as in the reference implementation."""
    reference = volume(*BLOBS) + volume(BLOBS[2])
    transform = LabelInsideOrgand("pred", clip_source="reference", reference_key="truth", num_components=1, dilate=1)
    found = transform({"pred": probabilities(volume() + 2), "truth": MetaTensor(reference[None])})["pred"]
    assert torch.equal(found[0].as_tensor(), volume(*BLOBS, value=2))


def test_two_classes() -> None:
    pred = torch.stack([volume(BLOBS[0]) * 0.4 + 0.3, torch.full((12, 10, 8), 0.5), 1.0 * volume(*BLOBS[:2])])
    found = LabelInsideOrgand("pred", classes=2)({"pred": pred})["pred"]
    assert torch.equal(found[0], volume(BLOBS[1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_source": "stage2"}, "clip_source: must be one of none, stage1, reference, got 'stage2'"),
        ({"classes": 1}, "classes: must be at least 2, got 1"),
        ({"num_components": 0}, "num_components: must be at least 1, got 0"),
        ({"dilate": -1}, "dilate: must be at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        LabelInsideOrgand("pred", **arguments)
    assert str(error.value).endswith(f"\n  {message}")


def test_probabilities_without_the_organ() -> None:
    with pytest.raises(InputError, match=r"scan.nii.gz: pred needs 4 channels for clip_source 'stage1', it has 3"):
        LabelInsideOrgand("pred")({"pred": probabilities(volume())})
