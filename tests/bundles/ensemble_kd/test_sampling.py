"""Batches of patches: places, shares against the reference implementation, repeatability, rotation, bad input."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import product
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from torch.utils.data import DataLoader

from ensemble_kd.sampling import PatchBatches
from ensemble_kd.shared.validation import InputError
from ensemble_kd.windows import CRITERIA
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
AREA, CENTRE = CRITERIA
LABEL = torch.from_numpy(GOLDEN["label_volume"].astype(np.int64))[None]
SOFT = torch.nn.functional.one_hot(LABEL[0], 3).movedim(-1, 0) * 0.8 + 0.2 / 3
INDICES = 1 + torch.arange(LABEL.numel()).view(LABEL.shape).float()
Case = dict[str, Any]


def batches(*cases: Case, **settings: Any) -> PatchBatches:
    """By default 40 patches for the dilated network with a receptive field of 35, without rotation."""
    defaults = {"batch_size": 40, "length": 50, "num_classes": 3, "window": 11, "margin": 17, "rotation": 0}
    data = PatchBatches(cases or [{"image": INDICES, "label": LABEL}], **{**defaults, **settings})
    data.set_random_state(5)
    return data


def middle(patches: torch.Tensor, margin: int) -> torch.Tensor:
    """The patches without their margin."""
    for axis in range(2, patches.ndim):
        patches = patches.narrow(axis, margin, patches.shape[axis] - 2 * margin)
    return patches


def labels_of(data: PatchBatches) -> torch.Tensor:
    return torch.cat([batch["label"] for batch in data])


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1, 2], None])
def test_image_label_and_soft_label_are_of_one_place(axes: list[int] | None) -> None:
    """The image's values are the places of its voxels, from which slices are seen to be cut across the asked axes."""
    data = batches({"image": INDICES, "label": LABEL, "soft": SOFT}, axes=axes, batch_size=8, margin=4, length=5)
    steps = set()
    for batch in data:
        places = middle(batch["image"], 4).long() - 1
        assert torch.equal(LABEL.flatten()[places], batch["label"])
        torch.testing.assert_close(batch["soft"], SOFT.flatten(1)[:, places[:, 0]].movedim(0, 1), rtol=0, atol=1e-6)
        steps |= {
            tuple(torch.stack([part.diff(dim=axis).max() for axis in range(1, part.ndim)]).tolist()) for part in places
        }
        assert batch["label"].dtype == torch.int64
        assert batch["image"].dtype == batch["soft"].dtype == torch.float32
    across = {0: (33, 1), 1: (1188, 1), 2: (1188, 33)}
    assert steps == ({(1188, 33, 1)} if axes is None else {across[axis] for axis in axes})


def test_soft_labels_sum_to_1() -> None:
    """Though what is stored in half precision does not."""
    (found,) = batches({"image": INDICES, "label": LABEL, "soft": SOFT * 1.005}, length=1)
    (expected,) = batches({"image": INDICES, "label": LABEL, "soft": SOFT}, length=1)
    torch.testing.assert_close(found["soft"], expected["soft"], rtol=0, atol=1e-6)


def test_outside_the_volume() -> None:
    """A volume of the window's size: all of the image beyond the middle is 0, though the volume is 7 everywhere."""
    case = {"image": torch.full((1, 11, 11, 11), 7.0), "label": torch.ones(1, 11, 11, 11, dtype=torch.uint8)}
    (batch,) = batches(case, ratios=[0, 1, 0], length=1)
    expected = torch.zeros(40, 1, 45, 45)
    expected[..., 17:28, 17:28] = 7
    assert torch.equal(batch["image"], expected)
    assert (batch["label"] == 1).all()


@pytest.mark.parametrize(
    ("name", "criterion", "ratios", "percent"),
    [
        ("center_055", CENTRE, (0, 5, 5), 0),
        ("center_532", CENTRE, (5, 3, 2), 0),
        ("area_532", AREA, (5, 3, 2), 0),
        ("area_532_fullbg100", AREA, (5, 3, 2), 100),
    ],
)
def test_shares_are_the_references(name: str, criterion: str, ratios: tuple[int, ...], percent: float) -> None:
    """Classes at the centre, classes in the window, and windows of background alone, of 4,000 to its 1,500."""
    labels = labels_of(batches(criterion=criterion, ratios=ratios, full_background=percent, length=100))
    assert labels.shape == (4000, 1, 11, 11)
    centres = [float((labels[..., 5, 5] == index).float().mean()) for index in range(3)]
    contained = [float((labels == index).flatten(1).any(1).float().mean()) for index in range(3)]
    alone = float((labels == 0).flatten(1).all(1).float().mean())
    np.testing.assert_allclose([*centres, *contained, alone], GOLDEN[f"stats.{name}"], rtol=0, atol=0.04)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("percent", "share"), [(0, 0), (1, 0), (50, 49 / 99), (100, 1)])
def test_background_alone(criterion: str, percent: float, share: float) -> None:
    labels = labels_of(batches(criterion=criterion, ratios=(1, 0, 0), full_background=percent))
    assert (labels == 0).flatten(1).any(1).all()
    found = float((labels == 0).flatten(1).all(1).float().mean())
    assert found == share if share in (0, 1) else abs(found - share) < 0.04


def test_percentages_that_rule_out_one_kind_of_background() -> None:
    """From 1 to 99 draws of 99 are below p: pure background needs p above 1, and mixed windows p of 99 or less."""
    empty = torch.zeros(1, 11, 11, 11, dtype=torch.int64)
    mixed = empty.clone()
    mixed[0, ::2, ::2, ::2] = mixed[0, 1::2, 1::2, 1::2] = 1
    for label, allowed, invalid, kind in ((mixed, 1, 2, "class 0 alone"), (empty, 100, 99, "class 0 are")):
        settings = {"ratios": (1, 0, 0), "length": 1}
        (batch,) = batches({"image": label, "label": label}, full_background=allowed, **settings)
        assert bool(batch["label"].any()) == (label is mixed)
        with pytest.raises(InputError, match=f"patches of {kind}"):
            batches({"image": label, "label": label}, full_background=invalid, **settings)


def test_cases_and_axes_without_the_class(caplog: pytest.LogCaptureFixture) -> None:
    """Of three cases one lacks the tumour and one has it where only one axis reaches it: places are drawn uniformly."""
    rows = torch.zeros(3, 1, 5, 5, 5, dtype=torch.int64)
    rows[:, 0, 2, 2, 2], rows[1, 0, 2, 2, 3], rows[2, 0, 2, 2, 0] = 1, 2, 2
    cases = [{"image": torch.full((1, 5, 5, 5), 1.0 + index), "label": row} for index, row in enumerate(rows)]
    cases[0]["case"] = "no tumour"
    settings = {"window": 3, "margin": 0, "criterion": CENTRE, "ratios": (0, 1, 1)}
    with caplog.at_level(logging.WARNING):
        data = batches(*cases, **settings)
    assert [record.getMessage() for record in caplog.records] == ["No window of class 2 in 1 case(s): no tumour"]
    found = Counter[tuple[int, int]]()
    for batch in data:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            found[int(image[0, 0, 0]), int(label[0, 1, 1])] += 1
    # Class 1 from all cases alike; class 2 from case 2 along three axes, from case 3 along axis 2 alone.
    expected = {(1, 1): 1 / 6, (2, 1): 1 / 6, (3, 1): 1 / 6, (2, 2): 3 / 8, (3, 2): 1 / 8}
    assert found.keys() == expected.keys()
    assert all(abs(found[key] / 2000 - share) < 0.03 for key, share in expected.items())


def draws(loader: Any) -> list[torch.Tensor]:
    return [torch.cat([batch[key].flatten().double() for key in ("image", "label")]) for batch in loader]


def test_batches_depend_on_seed_and_index_alone() -> None:
    data = batches(length=4, batch_size=3, rotation=10.0)
    first = draws(data)
    assert len(first) == len(data) == 4
    assert torch.equal(draws([data[2]])[0], first[2])
    for settings in ({}, {"worker_init_fn": monai.data.utils.worker_init_fn}):
        loader = DataLoader(data, batch_size=None, num_workers=2, **settings)
        assert all(map(torch.equal, draws(loader), first))
    set_rnd([data], 6)
    other = draws(data)
    assert not any(torch.equal(one, two) for one, two in product(first, other))
    assert not any(torch.equal(first[one], first[two]) for one, two in product(range(4), range(4)) if one < two)
    set_rnd(data, 5)
    assert all(map(torch.equal, draws(data), first))
    for index in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            data[index]


@pytest.mark.parametrize(
    ("axes", "window", "margin"), [([0, 1, 2], 11, 17), ([1], 11, 2), ([2], 16, 0), (None, 8, 0), (None, 7, 4)]
)
@pytest.mark.parametrize("interpolation", ["linear", "spline"])
def test_rotation_turns_all_alike(axes: list[int] | None, window: int, margin: int, interpolation: str) -> None:
    """Of an image that is class 1 in %, the soft label is the hundredth, and the label is of the nearest voxel."""
    one_hot = torch.stack([1.0 * (LABEL[0] == 0), 1.0 * (LABEL[0] > 0)])
    case = {"image": 100 * one_hot[1:], "label": (LABEL > 0).long(), "soft": one_hot.half()}
    settings = {"axes": axes, "window": window, "margin": margin, "num_classes": 2, "ratios": (1, 1)}
    data = batches(case, rotation=25.0, interpolation=interpolation, length=4, **settings)
    plain = batches(case, length=4, **settings)
    for index in range(4):
        batch = data[index]
        image, soft, label = middle(batch["image"], margin), batch["soft"], batch["label"]
        assert soft.min() >= 0
        torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]), rtol=0, atol=1e-5)
        assert soft[:, 1:][label == 1].min() > (0.249 if axes else 0.2)
        assert soft[:, 1:][label == 0].max() < (0.751 if axes else 0.8)
        assert not torch.equal(label, plain[index]["label"])
        if interpolation == "linear":
            torch.testing.assert_close(image / 100, soft[:, 1:], rtol=0, atol=1e-4)
        else:
            assert (image / 100 - soft[:, 1:]).abs().mean() < 0.02
            assert (image / 100 - soft[:, 1:]).abs().max() > 0.02


@pytest.mark.parametrize(("axes", "margin"), [([0, 1, 2], 17), ([0, 1, 2], 0), ([2], 3), (None, 0)])
def test_rotation_brings_no_background(axes: list[int] | None, margin: int) -> None:
    """Zero-padded before, as in the reference, 4 to 7 percent of a label of ones would become background."""
    ones = torch.ones_like(LABEL)
    soft = torch.stack([0 * ones[0], ones[0]]).float()
    data = batches(
        {"image": 50.0 * ones, "label": ones, "soft": soft},
        axes=axes,
        margin=margin,
        ratios=[0, 1],
        num_classes=2,
        rotation=30.0,
        length=2,
    )
    for batch in data:
        # Only windows away from the volume's borders: beyond them there is background.
        inner = ((batch["image"] - 50).abs() < 1e-3).flatten(1).all(1)
        assert inner.sum() > (10 if margin < 17 else -1)
        assert (batch["label"][inner] == 1).all()
        torch.testing.assert_close(batch["soft"][inner, 1], torch.ones(()).expand_as(batch["soft"][inner, 1]))


def test_angles() -> None:
    """Of a label that is split along one axis, the border's direction gives the angle: deviation as asked, mean 0."""
    ramp = torch.arange(60.0).view(1, 1, 60, 1).expand(1, 60, 60, 60)
    label = torch.ones(1, 60, 60, 60, dtype=torch.int64)
    data = batches({"image": ramp, "label": label}, axes=[0], margin=2, ratios=[0, 1, 0], rotation=10.0, length=60)
    found = []
    for batch in data:
        patch = batch["image"][:, 0]
        inner = patch.flatten(1).min(1).values > 0
        down, right = patch[inner, 8, 7] - patch[inner, 6, 7], patch[inner, 7, 8] - patch[inner, 7, 6]
        found += torch.rad2deg(torch.atan2(right, down)).tolist()
    assert len(found) > 1000
    assert abs(np.mean(found)) < 1
    assert abs(np.std(found) - 10) < 0.8


def test_float_volumes_with_metadata() -> None:
    """As MONAI's readers give them, turned to another orientation: the batches are those of plain tensors."""
    flat = MetaTensor(LABEL.float().permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1)
    found = batches({"image": MetaTensor(INDICES), "label": flat}, length=2)
    for one, two in zip(found, batches(length=2), strict=True):
        assert type(one["image"]) is torch.Tensor
        assert all(torch.equal(one[key], two[key]) for key in ("image", "label"))


SMALL = torch.zeros(1, 11, 12, 10, dtype=torch.int64)
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"ratios": (1, 1)}, "ratios: there must be one for each of 3 classes, got [1, 1]"),
    ({}, {"ratios": (2, -1, 1)}, "ratios: must be 0 or more"),
    ({}, {"ratios": (0, 0, 0)}, "and one of them above 0"),
    ({}, {"batch_size": 0}, "batch_size: must be 1 or more, got 0"),
    ({}, {"length": 0}, "length: must be 1 or more"),
    ({}, {"num_classes": 1}, "num_classes: must be 2 or more"),
    ({}, {"window": 0}, "window: must be 1 or more"),
    ({}, {"margin": -1}, "margin: must be 0 or more"),
    ({}, {"rotation": -1.0}, "rotation: must be 0 or more"),
    ({}, {"full_background": 101}, "full_background: must be a percentage, 0 to 100, got 101"),
    ({}, {"axes": [0, 3]}, "axes: must be among 0, 1 and 2, got [0, 3]"),
    ({}, {"axes": []}, "axes: must be among"),
    ({}, {"criterion": "patch_center_voxel"}, "criterion: must be one of entire-sample-area, patch-center-voxel"),
    ({}, {"interpolation": "cubic"}, "interpolation: must be one of linear, spline, got cubic"),
    ({"image": SMALL, "label": SMALL}, {}, "case 0: label: its size [11, 12, 10] is below the window's, [11, 11, 11]"),
    ({"image": SMALL, "label": SMALL, "case": "a"}, {"axes": [0]}, "case a: label: its size"),
    ({"image": SMALL, "label": SMALL}, {"axes": None}, "set pad_small"),
    ({"image": INDICES[:, 1:]}, {}, "case 0: image: its shape must be [1, 40, 36, 33], with the label's size"),
    ({"label": LABEL[0]}, {}, "image: its shape must be [1, 36, 33]"),
    ({"label": LABEL + 1}, {}, "label: must hold classes, 0 to 2"),
    ({"label": LABEL - 1}, {}, "label: must hold classes"),
    ({"label": LABEL / 2}, {}, "label: must hold classes"),
    ({"soft": SOFT[:2]}, {}, "soft: its shape must be [3, 40, 36, 33]"),
    ({"soft": SOFT * 1.1}, {}, "soft: must be probabilities"),
    ({"soft": SOFT - torch.tensor([0.5, -0.5, 0])[:, None, None, None]}, {}, "soft: must be probabilities"),
    ({"soft": SOFT * torch.nan}, {}, "soft: must be probabilities"),
    ({"label": LABEL.clamp(max=1)}, {}, "ratios: patches of class 2 are asked for, but no case has a window of them"),
    ({"label": LABEL * 0 + 1}, {"full_background": 50}, "patches of class 0 alone are asked for"),
]


@pytest.mark.parametrize(("case", "settings", "rule"), WRONG)
def test_bad_input(case: Case, settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError) as caught:
        batches({"image": INDICES, "label": LABEL, **case}, **settings)
    assert rule in str(caught.value)


def test_cases_that_differ() -> None:
    """All problems at once, by case; soft labels are in all cases or in none."""
    plain = {"image": INDICES, "label": LABEL}
    with pytest.raises(InputError) as caught:
        batches({**plain, "soft": SOFT}, {**plain, "case": "b"}, {"label": LABEL})
    assert str(caught.value).count("must be there in all cases or, soft labels only, in none") == 2
    assert "case b: soft: must be there" in str(caught.value)
    assert "case 2: image: must be there" in str(caught.value)
    with pytest.raises(InputError, match="case 1: soft: must be there"):
        batches(plain, {**plain, "soft": SOFT})
    with pytest.raises(InputError, match="volumes: there is no case"):
        PatchBatches([], batch_size=1, length=1, num_classes=2, window=3)


def test_axes_that_slices_are_not_cut_across_may_be_short() -> None:
    """A volume as long as the window along two axes and of three slices along the other."""
    label = torch.ones(1, 11, 11, 3, dtype=torch.int64)
    (batch,) = batches({"image": label.float(), "label": label}, axes=[2], ratios=(0, 1, 0), length=1)
    assert (batch["label"] == 1).all()
