from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from lachinov_distillation.duplicates import SAME, fingerprint, read_fingerprint, same_scans, similarities
from tests.bundles.hadnet.files import write
from tests.support.datalist_files import Volume, between, patient


def similarity(first: Volume, second: Volume) -> float:
    return float(similarities(torch.stack([fingerprint(first), fingerprint(second)]))[0, 1])


def test_two_halves() -> None:
    """Values of 100 and 300 are one standard deviation from their mean: blocks of -1 and +1, to the length 1."""
    volume = np.zeros((60, 60, 60), np.float32)
    volume[5:29, 7:55, 3:51] = 100
    volume[29:53, 7:55, 3:51] = 300
    blocks = fingerprint(volume)
    assert blocks.shape == (24, 24, 24)
    torch.testing.assert_close(blocks[:12], torch.full((12, 24, 24), -(24**-1.5)))
    torch.testing.assert_close(blocks[12:], torch.full((12, 24, 24), 24**-1.5))


def test_bright_voxels_are_cut_at_one_and_a_half_standard_deviations() -> None:
    """One voxel of 13824 lies 117.6 standard deviations above the mean, the others 0.0085 below it."""
    volume = np.ones((24, 24, 24), np.float32)
    volume[3, 4, 5] = 1001
    blocks = fingerprint(volume)
    assert blocks[3, 4, 5] / blocks[0, 0, 0] == pytest.approx(-1.5 * 13823**0.5, rel=1e-4)


def test_background_within_the_box_is_zero() -> None:
    """A block of eight voxels, one of them background, holds 7/8 of the score."""
    volume = np.full((48, 48, 48), 1.0, np.float32)
    volume[24:] = 3
    volume[0, 0, 0] = 0
    blocks = fingerprint(volume)
    assert blocks[0, 0, 0] / blocks[0, 0, 1] == pytest.approx(7 / 8)


RESTORED: dict[str, Callable[[Volume], Volume]] = {
    "float": lambda v: v.astype(np.float32) / 731,
    "eight bits": lambda v: np.round(v * (255 / v.max())).astype(np.uint8),
    "standard scores": lambda v: np.where(v != 0, (v - v[v != 0].mean()) / v[v != 0].std(), 0),
    "margin": lambda v: np.pad(v, ((9, 0), (2, 7), (0, 5))),
    "no margin": lambda v: v[4:-4, 4:-4, 4:-4],
    "first axis turned": lambda v: v[::-1],
    "two axes turned": lambda v: v[::-1, ::-1],
    "all axes turned": lambda v: v[::-1, ::-1, ::-1],
}


@pytest.mark.parametrize("how", RESTORED)
def test_same_scan_stored_otherwise(how: str) -> None:
    volume = patient(1)
    assert similarity(volume, RESTORED[how](volume).copy()) > 0.995


def test_different_scans() -> None:
    found = similarities(torch.stack([fingerprint(patient(seed)) for seed in range(6)]))
    torch.testing.assert_close(found.diagonal(), torch.ones(6))
    torch.testing.assert_close(found, found.T)
    assert (found - torch.eye(6)).max() < 0.5
    assert similarity(patient(1), patient(1).max() + 1 - patient(1)) < SAME, "a negative is another scan"


def test_nothing_is_like_a_fingerprint_of_zeros() -> None:
    found = similarities(torch.stack([torch.zeros(24, 24, 24), fingerprint(patient(1))]))
    assert found[0].tolist() == [0, 0]


def test_axes_follow_the_header(tmp_path: Path) -> None:
    """The same brain, stored with its first axis from front to back."""
    plain = write(tmp_path / "plain.nii.gz", patient(1))
    image = nibabel.Nifti1Image(patient(1).transpose(1, 2, 0), np.eye(4)[[2, 0, 1, 3]])
    nibabel.save(image, tmp_path / "turned.nii.gz")
    found = similarities(torch.stack([read_fingerprint(plain), read_fingerprint(tmp_path / "turned.nii.gz")]))
    assert found[0, 1] > 0.999


@pytest.mark.parametrize(
    ("volume", "rule"),
    [
        (np.zeros((8, 8, 8)), "shows no brain"),
        (np.full((8, 8, 8), 7.0), "shows no brain"),
        (np.full((8, 8, 8), np.nan), "NaN"),
        (np.pad(np.full((4, 8, 8), np.inf), 1), "infinite"),
    ],
)
def test_no_fingerprint(volume: Volume, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        fingerprint(volume)


def test_groups_of_the_same() -> None:
    """1 and 4 are the same, and 4 and 2: one group; 0 and 5 another; 3 is alone."""
    found = torch.eye(6)
    for first, second in ((1, 4), (4, 2), (0, 5)):
        found[first, second] = found[second, first] = SAME
    found[3, 2] = found[2, 3] = SAME - 0.001
    assert same_scans(found) == [[0, 5], [1, 2, 4]]


@pytest.mark.parametrize(("share", "groups"), [(0.0, [[0, 1]]), (0.3, [[0, 1]]), (0.7, []), (1.0, [])])
def test_how_like_the_same_are(share: float, groups: list[list[int]]) -> None:
    """Cosines of 1, 0.96, 0.82 and 0.71."""
    found = similarities(torch.stack([fingerprint(patient(1)), fingerprint(between(1, 2, share=share))]))
    assert found[0, 1] == pytest.approx((1 + share**2) ** -0.5, abs=0.07)
    assert same_scans(found) == groups


def test_channel_of_a_stack(tmp_path: Path) -> None:
    path = write(tmp_path / "stack.nii.gz", np.stack([patient(seed) for seed in range(4)], axis=-1), affine=(1, 1, 1))
    for channel in range(4):
        torch.testing.assert_close(read_fingerprint(path, channel), fingerprint(patient(channel)))


def test_real_scans_keep_their_distance(real_data: Path) -> None:
    files = sorted(file for folder in ("brats*", "tcga*") for file in real_data.glob(f"{folder}/*/flair.nii.gz"))
    assert len(files) >= 8
    volumes = [np.asarray(nibabel.load(file).dataobj) for file in files]
    found = similarities(torch.stack([fingerprint(volume) for volume in volumes]))
    assert (found - torch.eye(len(files))).max() < 0.7  # scans that are cropped to the brain are nearer to each other
    for volume in volumes[::3]:
        eight = np.round(np.pad(volume, 3)[::-1, ::-1] * (255 / volume.max()))
        assert similarity(volume, eight) > 0.99
