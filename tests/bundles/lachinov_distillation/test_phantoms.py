"""Phantoms of the Lachinov bundle: those of HAD-Net with contrasts of their own."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from tools.data.phantoms import Volume
from tools.per_bundle.hadnet_brats_mri import phantoms as brains
from tools.per_bundle.lachinov_distillation_brats_mri.phantoms import case, curved

SHAPE, SPACING = (24, 28, 22), (7.0, 7.0, 7.0)


def test_power_by_hand() -> None:
    scan = np.array([-3, 0, 1, 100, 400], np.int16)
    assert curved(scan, 0.5).tolist() == [0, 0, 20, 200, 400]
    assert curved(scan, 2.0).tolist() == [0, 0, 1, 25, 400]
    assert curved(scan, 1.0).tolist() == [0, 0, 1, 100, 400]


def test_patients_keep_their_anatomy_and_differ_in_contrast() -> None:
    """Grey values are those of HAD-Net's phantoms in order; the exponents of patients and sequences are apart."""
    exponents = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        found = case(rng, shape=SHAPE, spacing=SPACING)
        rng = np.random.default_rng(seed)
        rng.uniform(-1, 1, 4)
        plain = brains.case(rng, shape=SHAPE, spacing=SPACING)
        assert found.keys() == plain.keys()
        for name, volume in found.items():
            other = plain[name]
            assert isinstance(volume, Volume)
            assert isinstance(other, Volume)
            if "_seg" in name:
                assert np.array_equal(volume.voxels, other.voxels)
                continue
            assert np.array_equal(volume.voxels > 0, other.voxels > 0)
            inside = other.voxels > 0.05 * other.voxels.max()
            one, two = (scan[inside] / scan.max() for scan in (volume.voxels, other.voxels))
            assert spearmanr(one, two).statistic > 0.999
            middle = two < 0.9
            exponents.append(float(np.median(np.log(one[middle]) / np.log(two[middle]))))
    assert len(exponents) == 16
    assert 0.66 < min(exponents) < 0.8
    assert 1.2 < max(exponents) < 1.5
