"""Scans of several sequences, their brain, intensities within it, and the cut that the reference makes."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Cropd, Invertd

from hadnet.shared.sequences import LoadSequencesd, brain_mask, channels_of
from hadnet.shared.validation import InputError
from hadnet.transforms import NormalizeBraind, RearCenterCrop
from tests.bundles.hadnet.files import SEQUENCES, SHAPE, scan, write, write_case

STUDENT = ["flair", "t1", "t2"]


def load(path: Path, sequences: list[str], mask_from: list[str] = STUDENT) -> dict[Hashable, Any]:
    transform = LoadSequencesd("image", sequences=sequences, mask_from=mask_from, stack=SEQUENCES)
    return transform({"image": str(path), "case": "X", "other": 1})


def test_channels_are_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    for wanted in (["flair", "t1ce", "t1", "t2"], ["t2", "flair"]):
        item = load(folder / "X_t1.nii.gz", wanted)
        assert item["image"].shape == (len(wanted), *SHAPE)
        assert item["image"].dtype == torch.float32
        for channel, name in zip(item["image"], wanted, strict=True):
            np.testing.assert_array_equal(channel, scan(SEQUENCES.index(name)))
        assert item["image"].affine.diagonal().tolist() == [-1, -1, 1, 1]
        assert item["image"].meta["filename_or_obj"] == str(folder / "X.nii.gz")
        assert item["other"] == 1


def test_student_does_without_the_withheld_file(tmp_path: Path) -> None:
    """What is in it, and whether it is there, makes no difference."""
    folder = write_case(tmp_path / "X")
    before = load(folder / "X_flair.nii.gz", STUDENT)
    (folder / "X_t1ce.nii.gz").write_bytes(b"no volume")
    unreadable = load(folder / "X_flair.nii.gz", STUDENT)
    (folder / "X_t1ce.nii.gz").unlink()
    absent = load(folder / "X_flair.nii.gz", STUDENT)
    for item in (unreadable, absent):
        assert torch.equal(item["image"], before["image"])
        assert torch.equal(item["brain"], before["brain"])
    with pytest.raises(Exception, match="t1ce"):
        load(folder / "X_flair.nii.gz", STUDENT, mask_from=list(SEQUENCES))


def test_brain_is_where_all_sequences_of_the_mask_are_non_zero(tmp_path: Path) -> None:
    """Negative values count as signal."""
    flair, t1, t1ce = scan(0), scan(2), scan(1)
    flair[2, 2, 2], t1[3, 3, 3], t1ce[4, 4, 4], t1[5, 5, 5] = 0, 0, 0, -7
    folder = write_case(tmp_path / "X", volumes={"flair": flair, "t1": t1, "t1ce": t1ce})
    brain = load(folder / "X_flair.nii.gz", STUDENT)["brain"]
    assert brain.shape == (1, *SHAPE)
    assert brain.dtype == torch.uint8
    assert int(brain.sum()) == 8 * 10 * 6 - 2
    assert not brain[0, 2, 2, 2]
    assert not brain[0, 3, 3, 3]
    assert brain[0, 5, 5, 5]
    parity = load(folder / "X_flair.nii.gz", STUDENT, mask_from=list(SEQUENCES))
    assert int(parity["brain"].sum()) == 8 * 10 * 6 - 3
    assert parity["image"].shape[0] == 3


@pytest.mark.parametrize("held", [SEQUENCES, tuple(STUDENT)])
def test_volume_of_all_or_of_the_needed_sequences(held: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_case(tmp_path / "X")
    apart = load(folder / "X_flair.nii.gz", STUDENT)
    stacked = np.stack([scan(SEQUENCES.index(name)) for name in held], axis=-1)
    together = load(write(tmp_path / "BRATS_1.nii.gz", stacked), STUDENT)
    for key in ("image", "brain"):
        assert torch.equal(together[key], apart[key])
        torch.testing.assert_close(together[key].affine, apart[key].affine)


def test_channels_of_a_volume() -> None:
    assert channels_of(["t2", "flair"], stack=SEQUENCES, count=4) == [3, 0]
    assert channels_of(["t2", "flair"], stack=SEQUENCES, count=2) == [0, 1]
    rule = r"image: must have 4 \(flair, t1ce, t1, t2\) or 2 \(t2, flair\) channels, has 3"
    with pytest.raises(InputError, match=rule):
        channels_of(["t2", "flair"], stack=SEQUENCES, count=3)
    with pytest.raises(InputError, match="has 4"):
        channels_of(["adc"], stack=SEQUENCES, count=4)


def test_normalisation_by_hand() -> None:
    """Brain 2, 4, 4, 6 (mean 4, population deviation sqrt 2) and outside 0 and 100: from -4/sqrt 2 on, cut at 3."""
    volume = torch.tensor([2.0, 4.0, 4.0, 6.0, 0.0, 100.0]).view(1, 6, 1, 1)
    brain = torch.tensor([1, 1, 1, 1, 0, 0]).view(1, 6, 1, 1)
    item = NormalizeBraind("image")({"image": MetaTensor(volume), "brain": MetaTensor(brain)})
    root = 2**0.5
    expected = [(x + 4 / root) / (3 + 4 / root) for x in (-2 / root, 0, 0, 2 / root, -4 / root, 3)]
    torch.testing.assert_close(item["image"].as_tensor().flatten(), torch.tensor(expected))
    assert item["image"].min() == 0
    assert item["image"].max() == 1


def test_each_sequence_is_normalised_by_itself() -> None:
    """Whatever its scale and its shift within the brain."""
    volume = torch.from_numpy(np.stack([scan(0), scan(1)])).float()
    brain = brain_mask(volume)
    changed = torch.stack([5 * volume[0], volume[1]])
    one, other = (
        NormalizeBraind("image")({"image": MetaTensor(x), "brain": MetaTensor(brain)})["image"]
        for x in (volume, changed)
    )
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one[0], one[1])
    assert (one[:, ~brain[0]] == 0).all()


@pytest.mark.parametrize(("size", "kept", "first"), [(41, 32, 5), (40, 32, 4), (163, 160, 2), (32, 32, 0), (30, 32, 0)])
def test_odd_cut_takes_one_more_in_front(size: int, kept: int, first: int) -> None:
    """As 3.3 of the specification: of 41 voxels, 5 in front and 4 behind are left out; small volumes stay."""
    (part,) = RearCenterCrop([kept]).compute_slices([size])
    assert part.start == first
    assert len(range(size)[part]) == min(size, kept)


def test_cut_can_be_undone() -> None:
    volume = MetaTensor(torch.rand(1, 7, 4, 5), affine=torch.eye(4))
    crop = Cropd("image", cropper=RearCenterCrop([4, 4, 4]))
    item = crop({"image": volume})
    assert torch.equal(item["image"], volume[:, 2:6, :, 1:5])
    item["pred"] = item["image"].clone()
    back = Invertd("pred", transform=crop, orig_keys="image")(item)["pred"]
    assert back.shape == volume.shape
    assert torch.equal(back[:, 2:6, :, 1:5], item["image"])
    assert back[:, :2].abs().sum() == 0
