"""Scaling, mirroring and changes of intensities of ensemble_kd_kits_ct's patches, and inference on mirror images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from ensemble_kd.augmentation import mirrored
from ensemble_kd.inferers import OrthogonalSliceInferer
from ensemble_kd.losses import DistillationLoss, HardLoss
from ensemble_kd.mirroring import MirroredInferer
from ensemble_kd.rotation import rotate, surround
from ensemble_kd.sampling import PatchBatches
from ensemble_kd.shared.validation import InputError
from tests.conftest import config_files

NAME = "ensemble_kd_kits_ct"
LABEL = torch.zeros(1, 24, 26, 20, dtype=torch.uint8)
LABEL[:, 6:14, 8:20, 5:12], LABEL[:, 10:13, 9:13, 6:10] = 1, 2


def batches(**settings: Any) -> PatchBatches:
    given = {"batch_size": 6, "length": 4, "num_classes": 3, "window": 11, "rotation": 0.0, **settings}
    return PatchBatches([{"image": 10.0 * LABEL, "label": LABEL}], **given).set_random_state(3)


def augmentation(dims: int) -> Any:
    parser = ConfigParser()
    parser.read_config(config_files(NAME, "train"))
    parser.update({"dims": dims})
    return parser.get_parsed_content("augmentation")


def test_a_zoom_shows_as_much_more() -> None:
    """A square of 8 pixels is 4 wide where a window shows twice as much, and 16 where it shows half."""
    image = torch.zeros(2, 1, 32, 32)
    image[..., 12:20, 12:20] = 1
    found = rotate(image, torch.zeros(2), size=16, zooms=torch.tensor([2.0, 0.5]), mode="nearest")
    assert found.sum((1, 2, 3)).tolist() == [4 * 4, 16 * 16]


@pytest.mark.parametrize("zoom", [1.0, 1.25])
def test_surroundings_reach_far_enough(zoom: float) -> None:
    """What is turned and scaled into a window of ones lies within them: nothing from beyond is mirrored into it."""
    window, border = 10, surround(10, zoom=zoom)
    image = torch.full((8, 1, window + 2 * border + 4, window + 2 * border + 4), 7.0)
    image[..., 2:-2, 2:-2] = 1
    angles = torch.arange(8) * 45.0
    found = rotate(image, angles, size=window, zooms=torch.full((8,), zoom), mode="nearest")
    assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2,), None])
def test_image_and_label_stay_on_each_other(axes: tuple[int, ...] | None) -> None:
    """Scaled and mirrored, with a margin: the image is that of the label, up to interpolated edges."""
    given = {"axes": axes, "scaling": (0.8, 1.25), "mirror": (0, 1, 2), "margin": 2}
    for batch in batches(**given):
        edges = [slice(None), slice(None), *[slice(2, -2)] * (batch["image"].ndim - 2)]
        image = batch["image"][tuple(edges)]
        assert image.shape == batch["label"].shape
        assert ((image / 10 - batch["label"]).abs() < 0.51).float().mean() > 0.85


def test_patches_are_mirrored_along_axes_of_the_scan() -> None:
    """Of patches across axis 1 the scan's axis 2 is the second; along the axis of the cut nothing happens."""
    patch = torch.arange(4.0).view(1, 1, 2, 2)
    label = patch.long().expand(64, 3, 2, 2)
    found = mirrored(
        {"image": patch.expand(64, 1, 2, 2), "label": label}, [1] * 64, along=[1, 2], generator=np.random.default_rng(0)
    )
    kinds = {tuple(image.flatten().tolist()) for image in found["image"]}
    assert kinds == {(0, 1, 2, 3), (1, 0, 3, 2)}
    assert torch.equal(found["label"], found["image"].long().expand(64, 3, 2, 2))


@pytest.mark.parametrize("dims", [2, 3])
def test_intensities_of_the_recipe(dims: int) -> None:
    """They change the image alone, and are a function of seed and batch."""
    given: dict[str, Any] = {"axes": (2,) if dims == 2 else None, "window": 8, "ratios": (1, 1, 1)}
    plain = batches(**given)
    first, again, other = (batches(**given, augmentation=augmentation(dims)) for _ in range(3))
    other.set_random_state(2**32 - 1)  # any seed of 32 bits
    for index in range(len(plain)):
        assert torch.equal(first[index]["label"], plain[index]["label"])
        assert first[index]["image"].isfinite().all()
        assert torch.equal(first[index]["image"], again[index]["image"])
    assert any(not torch.equal(first[index]["image"], plain[index]["image"]) for index in range(len(plain)))
    assert any(not torch.equal(first[index]["label"], other[index]["label"]) for index in range(len(plain)))


@pytest.mark.parametrize("scaling", [(0.8,), (1.1, 1.2), (0.0, 1.0)])
def test_bad_scaling(scaling: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="scaling: must be two numbers around 1"):
        batches(scaling=scaling)


def test_mean_over_mirror_images() -> None:
    """By hand, for a network that knows left from right; whatever it says, the mean does not."""
    weight = torch.tensor([[[[0.0, 0.0, 1.0]]], [[[1.0, 0.0, 0.0]]]])

    def network(slices: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(slices, weight, padding=(0, 1))

    image = torch.randn(1, 1, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    plain = OrthogonalSliceInferer([2])
    found = MirroredInferer(plain, [1])(image, network)
    expected = (plain(image, network) + plain(image.flip(3), network).flip(3)) / 2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(MirroredInferer(plain, [1])(image.flip(3), network).flip(3), found)
    assert torch.equal(MirroredInferer(plain)(image, network), plain(image, network))


def test_dice_and_cross_entropy() -> None:
    """The mean Dice loss and the cross-entropy; the student without soft labels may have it."""
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 3, 6, 5, generator=generator), torch.randint(3, (2, 1, 6, 5), generator=generator)
    expected = HardLoss("ce")(logits, label) + HardLoss("dice")(logits, label) / 3
    torch.testing.assert_close(HardLoss("dice_ce")(logits, label), expected)
    torch.testing.assert_close(DistillationLoss(alone="dice_ce")(logits, label), expected)
