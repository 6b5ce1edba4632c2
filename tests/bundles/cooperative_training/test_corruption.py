"""Simulated artefacts: TorchIO's formulas and axes, published ranges, seeds, limits, degenerate volumes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray

from cooperative_training.artefacts import ARTEFACTS, check_artefacts, make_artefact
from cooperative_training.corruption import cases_of, corrupt, draw_seed
from cooperative_training.shared.validation import InputError
from tools import REPO

CONFIG = str(REPO / "bundles/cooperative_training_acdc_mri/configs/corrupt.yaml")
SETTINGS: dict[str, dict[str, Any]] = ConfigParser.load_config_files(CONFIG)["settings"]
SIZE = (24, 20)
Array = NDArray[np.floating]

each_artefact = pytest.mark.parametrize("name", list(ARTEFACTS))


def stack(*shape: int) -> MetaTensor:
    """A random volume `(1, X, Y, Z)` in [0, 1]."""
    return MetaTensor(torch.rand(1, *shape, generator=torch.Generator().manual_seed(5)))


def corrupted(name: str, volume: MetaTensor, *, seed: int = 3) -> tuple[Array, dict[str, Any]]:
    artefact = make_artefact(name, SETTINGS[name])
    before = volume.clone()
    image, drawn = corrupt(volume, artefact, patch_size=SIZE, seed=seed)
    assert torch.equal(volume, before)
    return image.numpy(), drawn


def scaled(volume: Array) -> Array:
    low, high = volume.min((0, 1), keepdims=True), volume.max((0, 1), keepdims=True)
    return (volume - low) / (high - low)


def spectrum(volume: Array) -> NDArray[np.complexfloating]:
    return np.fft.fftshift(np.fft.fftn(volume))


def image_of(volume: NDArray[np.complexfloating]) -> Array:
    return np.fft.ifftn(np.fft.ifftshift(volume)).real


def test_spike_is_one_point_of_the_spectrum_of_slice_y_x() -> None:
    volume = stack(*SIZE, 6)
    found, drawn = corrupted("RandomSpike", volume)
    waves = spectrum(scaled(volume[0].numpy().astype(float)).transpose())
    (place,) = drawn["spikes_positions"]
    waves[tuple(np.floor(np.multiply(place, (6, 20, 24))).astype(int))] += drawn["intensity"] * abs(waves).max()
    np.testing.assert_allclose(found[0], scaled(image_of(waves).transpose()), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])  # slice, y, x
def test_ghosting_dims_every_nth_plane_but_the_central_one(axis: int) -> None:
    volume = stack(*SIZE, 10)
    artefact = make_artefact("RandomGhosting", SETTINGS["RandomGhosting"] | {"axes": [axis]})
    found, drawn = corrupt(volume.clone(), artefact, patch_size=SIZE, seed=1)
    waves = np.moveaxis(spectrum(scaled(volume[0].numpy().astype(float)).transpose()), axis, 0)
    centre = len(waves) // 2
    kept = waves[centre].copy()
    waves[:: drawn["num_ghosts"]] *= 1 - drawn["intensity"]
    waves[centre] = kept
    expected = scaled(image_of(np.moveaxis(waves, 0, axis)).transpose())
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_bias_field_is_the_exponential_of_a_cubic() -> None:
    volume = stack(*SIZE, 6)
    found, drawn = corrupted("RandomBias", volume)
    axes = [(np.arange(size) + 0.5 - size / 2) / ((size - 1) / 2) for size in (6, 20, 24)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    orders = [(i, j, k) for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]
    power = sum(c * z**i * y**j * x**k for c, (i, j, k) in zip(drawn["coefficients"], orders, strict=True))
    expected = scaled(scaled(volume[0].numpy()) * np.exp(power).transpose())
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@each_artefact
def test_draws_stay_within_the_published_ranges(name: str) -> None:
    drawn = [corrupted(name, stack(*SIZE, 4), seed=seed)[1] for seed in range(30)]
    flat = {
        key: np.concatenate([np.ravel(one[key]) for one in drawn]) for key in drawn[0] if key != "image_interpolation"
    }
    ranges: dict[str, dict[str, tuple[float, float]]] = {
        "RandomBias": {"coefficients": (-0.5, 0.5), "order": (3, 3)},
        "RandomGhosting": {"num_ghosts": (4, 10), "axis": (0, 2), "intensity": (0.5, 1)},
        "RandomMotion": {"degrees": (-30, 30), "translation": (-10, 10), "times": (1 / 3 - 0.1, 2 / 3 + 0.1)},
        "RandomSpike": {"intensity": (1, 3), "spikes_positions": (0, 1)},
    }
    for key, (low, high) in ranges[name].items():
        assert low <= flat[key].min() <= low + (high - low) / 4, key
        assert high - (high - low) / 4 <= flat[key].max() <= high, key
    counts = {
        "RandomBias": ("coefficients", 20),
        "RandomMotion": ("degrees", 6),
        "RandomSpike": ("spikes_positions", 3),
    }
    if name in counts:
        key, count = counts[name]
        assert len(flat[key]) == 30 * count


@each_artefact
def test_seed_alone_decides_and_torchs_state_stays(name: str) -> None:
    torch.manual_seed(0)
    first, drawn = corrupted(name, stack(*SIZE, 5))
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))
    second, again = corrupted(name, stack(*SIZE, 5))
    other, _ = corrupted(name, stack(*SIZE, 5), seed=4)
    np.testing.assert_array_equal(first, second)
    assert drawn == again
    assert abs(other - first).max() > 0.01


def test_seed_is_the_checksum_of_the_place() -> None:
    assert draw_seed("RandomMotion", "patient001", frame="ED", draw=0) == 2524053444
    names = [f"{name}/{p}_{j}/{f}" for name in ARTEFACTS for p in range(40) for j in range(3) for f in ("ED", "ES")]
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)


@each_artefact
@pytest.mark.parametrize("shape", [(33, 29, 5), (16, 12, 4), (41, 12, 1)], ids=["larger", "smaller", "one slice"])
def test_centre_alone_is_corrupted(name: str, shape: tuple[int, int, int]) -> None:
    volume = stack(*shape) + 0.1
    found, _ = corrupted(name, volume)
    ones = MetaTensor(torch.ones(1, *shape))
    crop = ResizeWithPadOrCrop((*SIZE, -1))
    inside = crop.inverse(crop(ones)).numpy() == 1
    assert found.shape == (1, *shape)
    assert np.isfinite(found).all()
    assert not found[~inside].any()
    assert (found[inside] > 0).mean() > 0.9
    assert 0 <= found.min() < found.max() <= 1


@each_artefact
def test_constant_slices_stay_finite(name: str) -> None:
    volume = stack(*SIZE, 4)
    volume[..., 2] = 0.7
    found, _ = corrupted(name, volume)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    empty, _ = corrupted(name, volume * 0)
    assert not empty.any()


BAD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "corruptions: RandomBlur": (["RandomBlur"], {}),
    "settings::RandomBlur": ([], {"RandomBlur": {}}),
    "settings::RandomBias::degrees": ([], {"RandomBias": {"degrees": [0, 1]}}),
    "settings::RandomBias::coefficients": ([], {"RandomBias": {"coefficients": [-0.5, 3]}}),
    "settings::RandomBias::order": ([], {"RandomBias": {"order": 0}}),
    "settings::RandomGhosting::num_ghosts": ([], {"RandomGhosting": {"num_ghosts": [4.5, 10]}}),
    "settings::RandomGhosting::axes": ([], {"RandomGhosting": {"axes": [0, 3]}}),
    "settings::RandomGhosting::intensity": ([], {"RandomGhosting": {"intensity": [0.5, 1.5]}}),
    "settings::RandomMotion::degrees": ([], {"RandomMotion": {"degrees": [30, -30]}}),
    "settings::RandomMotion::translation": ([], {"RandomMotion": {"translation": 10}}),
    "settings::RandomMotion::num_transforms": ([], {"RandomMotion": {"num_transforms": [2]}}),
    "settings::RandomSpike::num_spikes": ([], {"RandomSpike": {"num_spikes": [0, 1]}}),
    "settings::RandomSpike::intensity": ([], {"RandomSpike": {"intensity": [1, float("nan")]}}),
}


@pytest.mark.parametrize("setting", list(BAD))
def test_setting_outside_its_range_is_refused_by_name(setting: str) -> None:
    names, settings = BAD[setting]
    check_artefacts(list(ARTEFACTS), SETTINGS)
    with pytest.raises(InputError, match=r"^1 problem") as caught:
        check_artefacts(names, settings)
    assert f"{setting}: " in str(caught.value)


def test_subset_chooses_a_split() -> None:
    splits = {"training": [{"case": "a"}], "test": [{"case": "b"}]}
    assert cases_of(splits, None) == [{"case": "a"}, {"case": "b"}]
    assert cases_of(splits, "test") == [{"case": "b"}]
    with pytest.raises(InputError, match="subset"):
        cases_of(splits, "tests")
