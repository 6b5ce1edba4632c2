"""Rotation of patches against SciPy, and against what the reference implementation makes of one image and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from ensemble_kd.rotation import rotate, rotate_cubes, surround
from ensemble_kd.shared.validation import InputError
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
ORDERS = {"nearest": 0, "linear": 1, "spline": 3}
ANGLES = (7.3, -12.0)
each_angle = pytest.mark.parametrize("angle", ANGLES)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def turned(pixels: np.ndarray, angle: float, mode: str) -> np.ndarray:
    found = rotate(torch.from_numpy(pixels).float()[None, None], torch.tensor([angle]), mode=mode)
    return found[0, 0].numpy()


@each_angle
def test_image_is_the_references(angle: float) -> None:
    """The spline is the reference's; linear interpolation differs by some percent of the image's deviation."""
    expected = GOLDEN[f"rotation.image_{angle}"]
    np.testing.assert_allclose(turned(GOLDEN["rotation.image"], angle, "spline"), expected, rtol=0, atol=1e-4)
    difference = abs(turned(GOLDEN["rotation.image"], angle, "linear") - expected).mean()
    assert 0.01 < difference / GOLDEN["rotation.image"].std() < 0.08


@each_angle
def test_mask_is_the_references(angle: float) -> None:
    """Pixel by pixel; only beyond the mask's borders the reference puts 0."""
    inside = ndimage.rotate(np.ones((45, 45)), angle, order=0, reshape=False) > 0
    assert 0.85 < inside.mean() < 1
    found = turned(GOLDEN["rotation.mask"], angle, "nearest")
    np.testing.assert_array_equal(found * inside, GOLDEN[f"rotation.mask_{angle}"])


@pytest.mark.parametrize("mode", ORDERS)
@pytest.mark.parametrize("edge", [20, 21])
def test_equals_scipy(mode: str, edge: int) -> None:
    images, angles = image(3, 2, edge, edge), torch.tensor([33.3, -4.0, 171.0])
    found = rotate(images, angles, mode=mode)
    for index, angle in enumerate(angles.tolist()):
        expected = ndimage.rotate(
            images[index].double().numpy(), angle, axes=(1, 2), reshape=False, order=ORDERS[mode], mode="reflect"
        )
        np.testing.assert_allclose(found[index], expected, rtol=0, atol=1e-4)


def test_quarter_turn() -> None:
    """A positive angle turns the second axis towards the first: 1 2 | 3 4 becomes 2 4 | 1 3."""
    found = rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0]))
    torch.testing.assert_close(found, torch.tensor([[[[2.0, 4.0], [1.0, 3.0]]]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ORDERS)
def test_size_takes_the_middle(mode: str) -> None:
    images, angles = image(2, 3, 19, 19), torch.tensor([25.0, -70.0])
    expected = rotate(images, angles, mode=mode)[..., 4:15, 4:15]
    torch.testing.assert_close(rotate(images, angles, size=11, mode=mode), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 11, 16, 55])
def test_surround_is_just_enough(window: int) -> None:
    images, angles = image(9, 1, window + 80, window + 80), torch.linspace(0, 90, 9)

    def within(border: int) -> torch.Tensor:
        middle = images[..., 40 - border : 40 + window + border, 40 - border : 40 + window + border]
        return rotate(middle, angles, size=window)

    expected = within(40)
    torch.testing.assert_close(within(surround(window)), expected, rtol=0, atol=1e-4)
    if window > 2:
        assert (within(surround(window) - 1) - expected).abs().max() > 0.05


@pytest.mark.parametrize("mode", ORDERS)
def test_cubes_turn_in_their_plane(mode: str) -> None:
    cubes, angles, fixed = image(4, 2, 9, 9, 9), torch.tensor([20.0, -35.0, 50.0, 8.0]), torch.tensor([2, 0, 1, 0])
    found = rotate_cubes(cubes, angles, fixed=fixed, size=5, mode=mode)
    for index, axes in enumerate([(1, 2), (2, 3), (1, 3), (2, 3)]):
        expected = ndimage.rotate(
            cubes[index].double().numpy(),
            float(angles[index]),
            axes=axes,
            reshape=False,
            order=ORDERS[mode],
            mode="reflect",
        )
        np.testing.assert_allclose(found[index], expected[:, 2:7, 2:7, 2:7], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        rotate_cubes(cubes, angles, fixed=fixed, mode=mode)[..., 2:7, 2:7, 2:7], found, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "options", "rule"),
    [
        ((9, 9), {"mode": "cubic"}, "mode: must be one of linear, nearest, spline, got cubic"),
        ((9, 9), {"size": 11}, "size: must be 9 or less"),
        ((9, 9), {"size": 0}, "got 0 of"),
        ((9, 9), {"size": 6}, "by an even number"),
        ((8, 9), {}, "of square images, got 9 of (8, 9)"),
    ],
)
def test_bad_input(shape: tuple[int, int], options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError) as caught:
        rotate(torch.zeros(1, 1, *shape), torch.zeros(1), **options)
    assert rule in str(caught.value)
