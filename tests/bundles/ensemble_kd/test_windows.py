"""Windows of patches by enumeration and against those that the reference implementation drew; small volumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from ensemble_kd.sampling import class_shares, cut
from ensemble_kd.shared.validation import InputError
from ensemble_kd.transforms import PadSmalld
from ensemble_kd.windows import CRITERIA, WindowTable, window_shape
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
AREA, CENTRE = CRITERIA
LABEL = GOLDEN["label_volume"]
INDICES = 1 + np.arange(LABEL.size).reshape(LABEL.shape)


def brute_force(label: np.ndarray, window: int, *, axis: int | None, **rules: Any) -> Iterator[tuple[int, ...]]:
    """All acceptable windows of a volume, one by one."""
    shape = window_shape(window, axis)
    for corner in product(*(range(size - edge + 1) for size, edge in zip(label.shape, shape, strict=True))):
        content = label[tuple(slice(first, first + edge) for first, edge in zip(corner, shape, strict=True))]
        centre = content[tuple(edge // 2 for edge in shape)]
        required = rules["required"]
        accepted = centre == required if rules["criterion"] == CENTRE else required in content
        if accepted and (required != 0 or content.any() != rules["full"]):
            yield corner


@pytest.mark.parametrize(("axis", "window"), [(0, 3), (1, 4), (2, 3), (None, 3), (None, 2), (2, 6)])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_tables_hold_every_window_once(axis: int | None, window: int, criterion: str) -> None:
    """The last positions and axes as long as the window too; sparse, dense and one-class volumes."""
    generator, lengths = np.random.default_rng(3), Counter[tuple[int, bool]]()
    for shares in ([0.98, 0.01, 0.01], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0, 0, 1], [1, 0, 0]) * 4:
        label = generator.choice(3, size=generator.integers(6, 9, 3), p=shares)
        for required, full in ((0, False), (0, True), (1, False), (2, False)):
            rules: dict[str, Any] = {"criterion": criterion, "required": required, "full": full}
            table = WindowTable(label, window, axis=axis, **rules)
            assert [table[index] for index in range(len(table))] == list(brute_force(label, window, axis=axis, **rules))
            lengths[required, full] += len(table)
    assert min(lengths.values()) > 20


def test_table_by_hand() -> None:
    """Of the 2 x 2 windows of one slice 0 0 0 | 0 0 1 | 0 0 0, those on the right hold the 1."""
    label = np.zeros((1, 3, 3), int)
    label[0, 1, 2] = 1
    table = WindowTable(label, 2, axis=0, criterion=AREA, required=1)
    assert [table[0], table[1]] == [(0, 0, 1), (0, 1, 1)]
    assert (len(table), table.ends.tolist(), table.totals.tolist()) == (2, [2, 4], [1, 2])
    for index in (-1, 2):
        with pytest.raises(IndexError, match="of 2"):
            table[index]
    centre = WindowTable(label, 2, axis=0, criterion=CENTRE, required=1)
    assert [centre[index] for index in range(len(centre))] == [(0, 0, 1)]
    assert len(WindowTable(label, 4, axis=0, criterion=AREA, required=0)) == 0


def test_windows_are_drawn_uniformly() -> None:
    label = np.random.default_rng(0).choice(3, size=(5, 6, 7), p=[0.9, 0.05, 0.05])
    table, generator = WindowTable(label, 3, axis=1, criterion=AREA, required=1), np.random.default_rng(1)
    counts = Counter(table.draw(generator) for _ in range(100 * len(table)))
    assert sorted(counts) == list(brute_force(label, 3, axis=1, criterion=AREA, required=1, full=False))
    squares = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert abs(squares - len(table) + 1) < 3 * (2 * len(table)) ** 0.5


@pytest.mark.parametrize(("criterion", "name"), [(CENTRE, "center"), (AREA, "area")])
def test_patches_of_the_reference(criterion: str, name: str) -> None:
    """What the reference drew is in the tables, and cut at the same place ours is the same."""
    axes = Counter[int]()
    for image, label in zip(GOLDEN[f"{name}.images"], GOLDEN[f"{name}.labels"], strict=True):
        voxels = np.array(np.unravel_index(image[17:-17, 17:-17] - 1, LABEL.shape))
        (axis,) = (along for along in range(3) if len(np.unique(voxels[along])) == 1)
        corner = voxels[:, 0, 0].tolist()
        axes[axis] += 1
        ours = {key: np.zeros((1, edge, edge)) for key, edge in (("image", 45), ("label", 11))}
        for key, volume, margin in (("image", INDICES, 17), ("label", LABEL, 0)):
            first = [place - margin * (along != axis) for along, place in enumerate(corner)]
            cut(volume[None], np.expand_dims(ours[key], axis + 1), corner=first)
        np.testing.assert_array_equal(ours["image"][0], image)
        np.testing.assert_array_equal(ours["label"][0], label)
        tables = [WindowTable(LABEL, 11, axis=axis, criterion=criterion, required=required) for required in range(3)]
        assert any(tuple(corner) in {table[index] for index in range(len(table))} for table in tables)
    assert set(axes) == {0, 1, 2}


@pytest.mark.parametrize(
    "rules", [{"criterion": "area", "required": 1}, {"criterion": AREA, "required": 1, "full": True}]
)
def test_tables_of_no_kind(rules: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"criterion: must be one of|full: is for class 0 only, got class 1"):
        WindowTable(np.ones((3, 3, 3)), 2, axis=0, **rules)


def test_class_shares() -> None:
    assert class_shares((5, 3, 2), 3) == [0.5, 0.3, 0.2]
    assert class_shares((5, 3, 2), 2) == [0.5, 0.5]
    assert class_shares((1, 3), 2) == [0.25, 0.75]
    assert class_shares((0, 0.5, 0.5), 3) == [0, 0.5, 0.5]
    for ratios, classes in (((1, 1, 1, 1), 3), ((1,), 2)):
        with pytest.raises(InputError, match=f"there must be one for each of {classes} classes"):
            class_shares(ratios, classes)


def test_pad_small() -> None:
    """Half the window on all six sides, and nothing where the volume is as large as the window."""
    shape = (4, 7, 5)
    case: dict[Any, Any] = {
        "image": MetaTensor(torch.ones(1, *shape)),
        "label": torch.ones(1, *shape).byte(),
        "other": 3,
    }
    case["soft"] = torch.stack([torch.full(shape, 0.25), torch.full(shape, 0.75)]).half()
    padded = PadSmalld(["image", "label", "soft"], 5)(case)
    for key, outside in (("image", [0.0]), ("label", [0]), ("soft", [1.0, 0.0])):
        assert padded[key].shape[1:] == (8, 11, 9)
        assert padded[key].dtype == case[key].dtype
        middle = padded[key][:, 2:6, 2:9, 2:7].clone()
        assert torch.equal(torch.as_tensor(middle), torch.as_tensor(case[key]))
        for channel, value in zip(padded[key].clone(), outside, strict=True):
            channel[2:6, 2:9, 2:7] = value
            assert (channel == value).all()
    assert padded["image"].affine[:3, 3].tolist() == [-2, -2, -2]
    assert padded["other"] == 3
    same = PadSmalld(["image", "label", "soft"], 4)(case)
    assert all(same[key] is case[key] for key in case)
    assert case["soft"].shape == (2, *shape)
