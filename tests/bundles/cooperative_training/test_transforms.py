"""Augmentation of slices: against the reference implementation, by hand, and by its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import CenterSpatialCrop
from scipy import ndimage

from cooperative_training import transforms
from cooperative_training.transforms import (
    RandBrightnessContrastd,
    RandWarpSliced,
    affine_matrix,
    smooth_field,
    source_coordinates,
    warp_image,
    warp_label,
)
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/cooperative_training/golden.npz")
SIDE = 96
STILL: dict[str, Any] = {
    "rotate_range": 0,
    "translate_range": 0,
    "zoom_range": (1, 1),
    "eighth_turns": False,
    "elastic_prob": 0,
}
Item = dict[Any, torch.Tensor]


def golden_image() -> torch.Tensor:
    """Phantom slice that the golden tensors were computed with."""
    return torch.from_numpy(GOLDEN["image"])[None]


def golden_label() -> torch.Tensor:
    """Its label map: cavity 1 in a ring 2, and beside it an ellipse 3."""
    rows, columns = np.indices((SIDE, SIDE)) / SIDE
    distance = (rows - 0.45) ** 2 + (columns - 0.52) ** 2
    ellipse = ((rows - 0.45) / 0.13) ** 2 + ((columns - 0.31) / 0.10) ** 2 <= 1
    label = np.where(distance <= 0.09**2, 1, np.where(distance <= 0.14**2, 2, 3 * ellipse))
    return torch.from_numpy(label.astype(np.uint8))[None]


def coordinates(matrix: np.ndarray, displacement: np.ndarray | None = None) -> np.ndarray:
    return source_coordinates(matrix, displacement, shape=(SIDE, SIDE), size=(SIDE, SIDE))


def difference(image: torch.Tensor, key: str, *, source: np.ndarray) -> float:
    """Largest difference to a golden image where the source is off the border, whose rule is another there."""
    valid = np.all((source >= 0) & (source <= SIDE - 2), axis=0)[::2, ::2]
    assert valid.mean() > 0.75
    return float(np.abs(image[0, ::2, ::2].numpy() - GOLDEN[key])[valid].max())


def test_matrix_of_reference_and_linear_and_nearest_interpolation() -> None:
    matrix = affine_matrix(np.deg2rad(11), (0.05 * SIDE, -0.08 * SIDE), zoom=(0.85, 1.07))
    assert matrix == pytest.approx(GOLDEN["affine_matrix"], abs=1e-6)
    source = coordinates(matrix)
    assert difference(warp_image(golden_image(), source), "affine_image", source=source) < 1e-5
    assert np.array_equal(warp_label(golden_label(), source)[0], GOLDEN["affine_label"])


def test_eighth_turn_of_reference() -> None:
    source = coordinates(affine_matrix(np.pi / 4))
    assert difference(warp_image(golden_image(), source), "rot45_image", source=source) < 1e-5


def test_elastic_deformation_of_reference() -> None:
    noise = np.random.RandomState(9).uniform(-1, 1, (2, SIDE, SIDE))
    across, down = 1.75 * SIDE * smooth_field(noise, sigma=0.15 * 0.75 * SIDE)
    source = coordinates(np.eye(3), np.stack([down, across]))
    assert difference(warp_image(golden_image(), source, spline=True), "elastic_image", source=source) < 1e-5
    assert np.array_equal(warp_label(golden_label(), source, spline=True)[0], GOLDEN["elastic_label"])


def test_brightness_of_reference() -> None:
    change = RandBrightnessContrastd("image", prob=1, contrast=(0.8049113, 0.8049113), brightness=(-0.0775202,) * 2)
    result = change({"image": golden_image()})["image"][0, ::2, ::2].numpy()
    assert result == pytest.approx(GOLDEN["brightness_image"], abs=1e-6)


@pytest.mark.parametrize("shape", [(30, 30), (17, 40)])
def test_smooth_field_is_the_gaussian_filter_with_zeros_outside(shape: tuple[int, int]) -> None:
    noise = np.random.RandomState(0).uniform(-1, 1, (2, *shape))
    expected = [ndimage.gaussian_filter(layer, 3.3, mode="constant") for layer in noise]
    assert smooth_field(noise, sigma=3.3) == pytest.approx(np.stack(expected), abs=1e-6)


def test_coordinates_by_hand() -> None:
    # (r, c) is zoomed to (r, 2 c), shifted to (r + 1, 2 c), turned to (-2 c, r + 1).
    matrix = affine_matrix(np.pi / 2, (1, 0), zoom=(1, 2))
    source = source_coordinates(matrix, shape=(5, 5), size=(3, 3))
    assert source[:, 1, 1] == pytest.approx([2, 3])
    assert source[:, 0, 1] == pytest.approx([2, 2])
    assert source[:, 1, 2] == pytest.approx([0, 3])


def test_displacement_acts_before_the_matrix() -> None:
    displacement = np.zeros((2, 5, 5))
    displacement[0, 2, 2] = 1
    source = source_coordinates(affine_matrix(0, zoom=(0.5, 1)), displacement, shape=(5, 5), size=(3, 3))
    assert source[:, 1, 1] == pytest.approx([2.5, 2])
    assert source[:, 2, 1] == pytest.approx([2.5, 2])


@pytest.mark.parametrize("spline", [False, True])
def test_border_is_continued(spline: bool) -> None:
    image = torch.arange(6.0).expand(1, 4, 6).contiguous()
    source = source_coordinates(affine_matrix(0, (0, 2)), shape=(4, 6), size=(4, 6))
    expected = torch.tensor([2.0, 3, 4, 5, 5, 5]).expand(1, 4, 6)
    assert torch.allclose(warp_image(image, source, spline=spline), expected, atol=1e-5)
    assert torch.equal(warp_label(image.byte(), source, spline=False), expected.byte())
    beyond = warp_image(image, source + 0.5, spline=spline)[..., 3:]
    assert torch.allclose(beyond, torch.tensor(5.0), atol=1e-5)


def test_quarter_turn_moves_whole_pixels() -> None:
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = warp_image(image, source_coordinates(affine_matrix(np.pi / 2), shape=(8, 8), size=(8, 8)))
    assert torch.allclose(turned, torch.rot90(image, 3, (1, 2)), atol=1e-5)


def test_label_spline_is_evaluated_near_labels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.RandomState(4)
    label = (ndimage.gaussian_filter(rng.rand(60, 60), 1) * 40).astype(int) % 4 * (rng.rand(60, 60) < 0.9)
    label[20:] = 0
    source = np.indices((60, 60)) + 6 * smooth_field(rng.uniform(-1, 1, (2, 60, 60)), sigma=3)
    masks = [transforms._spline(1.0 * (label == value), source) >= 0.5 for value in (1, 2, 3)]
    evaluated = []

    def counting(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        evaluated.append(points[0].size)
        return ndimage.map_coordinates(image, np.clip(points, 0, 59), order=3, mode="reflect")

    monkeypatch.setattr(transforms, "_spline", counting)
    found = warp_label(torch.from_numpy(label.astype(np.uint8))[None], source, spline=True)
    assert np.array_equal(found[0], np.select(masks[::-1], [3, 2, 1], 0))
    assert set(found[0, :20].flatten().tolist()) == {0, 1, 2, 3}
    assert max(evaluated) < 0.5 * 60 * 60


def test_label_without_background_stays_full() -> None:
    warp = RandWarpSliced(spatial_size=(16, 16), elastic_prob=1).set_random_state(0)
    result = warp({"image": torch.rand(1, 20, 20), "label": torch.ones(1, 20, 20, dtype=torch.uint8)})
    assert result["label"].eq(1).all()


@pytest.mark.parametrize("shape", [(96, 96), (97, 110), (80, 225)])
def test_still_warp_is_the_central_crop(shape: tuple[int, int]) -> None:
    item: Item = {"image": torch.rand(1, *shape), "label": torch.randint(0, 4, (1, *shape), dtype=torch.uint8)}
    result = RandWarpSliced(spatial_size=(80, 64), **STILL)(item)
    crop = CenterSpatialCrop((80, 64))
    assert torch.allclose(result["image"], crop(item["image"]).as_tensor(), atol=2e-4)
    assert torch.equal(result["label"], crop(item["label"]).as_tensor())


def test_no_elastic_strength_keeps_image_and_label() -> None:
    warp = RandWarpSliced(spatial_size=(SIDE, SIDE), **{**STILL, "elastic_prob": 1, "alpha_range": (0, 0)})
    result = warp({"image": golden_image(), "label": golden_label()})
    assert torch.allclose(result["image"], golden_image(), atol=1e-5)
    assert torch.equal(result["label"], golden_label())


@pytest.mark.parametrize("elastic_prob", [0, 1])
def test_image_and_label_move_together(elastic_prob: float) -> None:
    warp = RandWarpSliced(spatial_size=(80, 80), elastic_prob=elastic_prob).set_random_state(5)
    still = golden_label()[:, 8:88, 8:88]
    for _ in range(8):
        item = warp({"image": (golden_label() > 0).float(), "label": golden_label()})
        moved, label = item["image"] >= 0.5, item["label"] > 0
        assert 2 * (moved & label).sum() / (moved.sum() + label.sum()) > 0.97
        assert (label != (still > 0)).sum() > 100
        assert item["label"].dtype == torch.uint8
        assert item["image"].dtype == torch.float32


def test_deformed_slices_are_read_by_splines() -> None:
    warp = RandWarpSliced(spatial_size=(80, 80), elastic_prob=1).set_random_state(6)
    item = warp({"image": golden_image(), "label": golden_label()})
    warp.set_random_state(6)
    matrix, displacement = warp.draw_matrix((SIDE, SIDE)), warp.draw_displacement((SIDE, SIDE))
    source = source_coordinates(matrix, displacement, shape=(SIDE, SIDE), size=(80, 80))
    assert torch.equal(item["image"], warp_image(golden_image(), source, spline=True))
    assert torch.equal(item["label"], warp_label(golden_label(), source, spline=True))
    assert not torch.equal(item["label"], warp_label(golden_label(), source))


def test_draws_stay_in_their_ranges_and_reach_every_turn() -> None:
    warp = RandWarpSliced(spatial_size=(80, 80)).set_random_state(1)
    turns, angles = set(), []
    for _ in range(200):
        matrix = warp.draw_matrix((100, 200))
        candidates = {k: matrix[:2, :2] @ affine_matrix(-k * np.pi / 4)[:2, :2] for k in range(8)}
        fits = {k: a for k, a in candidates.items() if abs(a[:, 0] @ a[:, 1]) < 1e-9 and a[0, 0] > 0.7}
        ((turn, affine),) = fits.items()  # rotation · zoom has orthogonal columns; the zooms are not equal
        angle = np.arctan2(affine[1, 0], affine[0, 0])
        shift = affine_matrix(-angle)[:2, :2] @ matrix[:2, 2]
        zoom = np.linalg.norm(affine, axis=0)
        assert abs(angle) <= np.pi / 12
        assert np.all(np.abs(shift) <= [10, 20])
        assert np.all((zoom >= 0.8) & (zoom <= 1.1))
        turns.add(turn)
        angles.append(angle)
    assert turns == set(range(8))
    assert np.ptp(angles) > 0.9 * np.pi / 6


def test_displacement_comes_half_the_time_and_is_a_few_pixels() -> None:
    warp = RandWarpSliced(spatial_size=(40, 40)).set_random_state(2)
    fields = [warp.draw_displacement((48, 48)) for _ in range(200)]
    drawn = [field for field in fields if field is not None]
    assert 80 < len(drawn) < 120
    # Noise of variance 1/3 through a Gaussian of sigma s keeps 1 / (2 sqrt(pi) s) of its deviation; alpha is 11.7 to
    # 26.7 s. Zeros outside the slice halve it towards the border.
    assert 0.8 < np.mean([field.std() for field in drawn]) < 3.2


def test_seed_alone_decides() -> None:
    def run(seed: int, numpy_seed: int) -> torch.Tensor:
        np.random.seed(numpy_seed)  # noqa: NPY002  the global state must not matter
        item: Item = {"image": golden_image(), "label": golden_label()}
        for step in (RandBrightnessContrastd("image"), RandWarpSliced(spatial_size=(80, 80))):
            step.set_random_state(seed)
            item = step(item)
        return item["image"]

    assert torch.equal(run(3, 0), run(3, 1))
    assert not torch.equal(run(3, 0), run(4, 0))


def test_input_is_left_alone() -> None:
    image, label = golden_image(), golden_label()
    item: Item = {"image": image.clone(), "label": label.clone()}
    for step in (RandBrightnessContrastd("image", prob=1), RandWarpSliced(spatial_size=(80, 80), elastic_prob=1)):
        step.set_random_state(0)(item)
    assert torch.equal(item["image"], image)
    assert torch.equal(item["label"], label)


def test_brightness_keeps_the_range_and_its_gate() -> None:
    image = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    change = RandBrightnessContrastd("image").set_random_state(0)
    results = [change({"image": image})["image"] for _ in range(100)]
    assert all(result.min() >= image.min() and result.max() <= image.max() for result in results)
    assert 35 < sum(torch.equal(result, image) for result in results) < 65


def test_output_larger_than_the_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the slice"):
        RandWarpSliced(spatial_size=(80, 80))({"image": torch.rand(1, 64, 96), "label": torch.zeros(1, 64, 96)})


def shipped(**still: Any) -> Callable[[Item], Item]:
    """The slice transforms of `train.yaml`; `still` replaces arguments of those that have them."""
    parser = ConfigParser()
    parser.read_config(REPO / "bundles/cooperative_training_acdc_mri/configs/train.yaml")
    for step in parser.config["train"]["preprocessing"]["transforms"]:
        step.update({"prob": 0} if "prob" in step or "Brightness" in step["_target_"] else {})
        step.update(still if "RandWarpSliced" in step["_target_"] else {})
    chain: Callable[[Item], Item] = parser.get_parsed_content("train::preprocessing")
    return chain


def test_splines_read_what_those_of_the_whole_slice_read() -> None:
    image = np.random.RandomState(2).rand(90, 80).astype(np.float32)
    source = np.random.RandomState(3).uniform(30, 50, (2, 9, 9))
    expected = ndimage.map_coordinates(image, source, order=3)
    assert warp_image(torch.from_numpy(image)[None], source, spline=True)[0].numpy() == pytest.approx(
        expected, abs=1e-6
    )


def test_shipped_chain_without_chance_is_the_reference_of_validation() -> None:
    image = torch.from_numpy(np.random.RandomState(8).rand(201, 230)[:200]).float()[None]
    item = shipped(**STILL)({"image": image, "label": torch.zeros(1, 200, 230, dtype=torch.uint8)})
    assert item["image"].shape == (1, 192, 192)
    assert item["image"][0, ::8, ::8].numpy() == pytest.approx(GOLDEN["validate_image"], abs=1e-4)
    assert torch.equal(item["clean_image"], image[:, 4:196, 19:211])


@pytest.mark.parametrize("shape", [(150, 201), (225, 161)])
def test_shipped_chain_pads_and_survives_constant_slices(shape: tuple[int, int]) -> None:
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[:, 60:90, 60:90] = 2
    for step in range(3):
        item = shipped()({"image": torch.full((1, *shape), 0.3 * step), "label": label})
        assert torch.all((item["image"] >= 0) & (item["image"] <= 1))
        assert set(item["label"].flatten().tolist()) == {0, 2}
        assert item["clean_image"].shape == item["clean_label"].shape == (1, 192, 192)
        assert item["clean_image"].max() == pytest.approx(0.3 * step)
