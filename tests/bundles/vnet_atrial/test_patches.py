"""Where patches of vnet_atrial_mri lie, what augmentation sees of a scan, windows, flips, schedule and tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, RandAffined
from torch import nn

from tests.bundles.vnet_atrial.reference import config
from tools.data.phantoms import write_volume
from vnet_atrial import reference
from vnet_atrial.handlers import CaseScores, scores
from vnet_atrial.inferers import WindowInferer
from vnet_atrial.transforms import CropAroundd, LocateAtriumd, affine_reach

SPACING = 0.625
MOTION: dict[str, Any] = {
    "rotate_range": [0.15, 0.15, 0.3],
    "scale_range": [0.15, 0.15, 0.15],
    "translate_range": [4.8, 3.2, 2.4],
}


class Bright(nn.Module):
    """A locator that marks what is brighter than a value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 10 * (image - self.value)


def misplacements(coarse: Any, *, value: float, shape: Sequence[int]) -> np.ndarray:
    """Voxels from the centre of bright blocks to those of the patches found for them, `(blocks, 3)`."""
    rng, found = np.random.default_rng(0), []
    affine = np.diag([-SPACING, -SPACING, SPACING, 1.0])
    affine[:3, 3] = 50, 30, -20
    locate = LocateAtriumd("image", Bright(value), coarse=coarse, patch_size=(32, 32, 16))
    for _ in range(64):
        size = rng.integers((20, 20, 12), (50, 50, 20))
        low = rng.integers(16, np.array(shape) - 16 - size)
        image = MetaTensor(torch.zeros(1, *shape), affine=affine)
        image[(0, *(slice(a, a + n) for a, n in zip(low, size, strict=True)))] = 200
        patch = locate({"image": image})["image"]
        start = np.linalg.solve(affine, patch.affine.numpy()[:, 3])[:3]
        found.append(start + (np.array(patch.shape[1:]) - 1) / 2 - (low + (size - 1) / 2))
    return np.array(found)


def test_patch_is_centred_on_the_atrium() -> None:
    parser = config("inference", coarse_size=[48, 48, 32])
    found = misplacements(parser.get_parsed_content("coarse"), value=3, shape=(163, 171, 57))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.25)
    assert np.abs(found).max() <= 2  # half a coarse voxel


def test_published_patch_lies_around_the_atrium_but_for_half_a_voxel() -> None:
    found = misplacements(reference.Downscale((192, 192, 64)), value=100, shape=(192, 192, 64))
    np.testing.assert_allclose(found.mean(axis=0), -0.5, atol=0.25)


def test_locator_is_trained_on_what_it_is_used_on(tmp_path: Path) -> None:
    """A scan that is smaller than patch and field of view in one axis, and has an odd size in another."""
    rng = np.random.default_rng(0)
    paths = {key: str(tmp_path / f"{key}.nrrd") for key in ("image", "label")}
    for path in paths.values():
        write_volume(Path(path), rng.integers(0, 2, (40, 67, 30)).astype(np.uint8), spacing=(1.25, 1.25, 1.25))
    sizes: dict[str, Any] = {"pixdim": [1.25] * 3, "coarse_pixdim": [2.5] * 3, "coarse_size": [32, 48, 32]}
    sizes |= {"patch_size": [48, 48, 48]}
    parsers = config("train", "train_locator", **sizes), config("inference", locate=False, **sizes)
    trained = Compose(parsers[0].get_parsed_content("coarse_transforms"))(paths)["image"]
    before = parsers[1].get_parsed_content("preprocessing").transforms[:-1]  # the last normalises the patch
    used = parsers[1].get_parsed_content("coarse")(Compose(before)({"image": paths["image"]})["image"])
    assert torch.equal(trained, used.as_tensor())


@pytest.mark.parametrize("centre", [(60, 50, 40), (14, 90, 30)])  # in the middle of a scan, and near its borders
def test_random_motion_sees_all_of_the_scan_and_the_atrium_in_the_middle(centre: tuple[int, int, int]) -> None:
    """Patches from the crop are those from the scan, continued on all sides, with the atrium in its middle."""
    patch, shape = (48, 32, 24), (120, 104, 72)
    scan = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, *shape)
    i, j, k = (slice(c - 6, c + 7) for c in centre)
    mask[0, i, j, k] = 1
    whole = nn.functional.pad(scan[None], [150] * 6, mode="replicate")[0]
    x, y, z = (slice(150 + c - 120, 150 + c + 121) for c in centre)
    middle = whole[:, x, y, z]
    ranges = {"rotate": MOTION["rotate_range"], "scale": MOTION["scale_range"], "shift": MOTION["translate_range"]}
    reach = affine_reach(patch, **ranges)
    small = CropAroundd(["image", "label"], source_key="label", reach=reach)({"image": scan, "label": mask})
    assert all(size <= 2 * far + 1 for size, far in zip(small["image"].shape[1:], reach, strict=True))
    move = RandAffined("image", prob=1, spatial_size=patch, padding_mode="border", **MOTION)
    for seed in range(8):
        seen = [move.set_random_state(seed)({"image": image})["image"] for image in (small["image"], middle)]
        assert torch.allclose(seen[0], seen[1], atol=1e-3)


def test_reach_by_hand() -> None:
    """Twice the half patch, plus the shift; a quarter turn about z exchanges x and y, each bounded by both."""
    assert affine_reach((9, 5, 3), rotate=(0, 0, 0), scale=(1, 0, 0), shift=(3, 0, 0)) == [11, 2, 1]
    assert affine_reach((9, 5, 3), rotate=(0, 0, np.pi / 2), scale=(0, 0, 0), shift=(0, 0, 0)) == [6, 6, 1]


def test_windows_are_normalised_one_by_one() -> None:
    """A window of a scan with a bright and a dark half gets the logits that it has as a scan of its own."""
    bright = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    inferer = WindowInferer(roi_size=(16, 16, 16), overlap=0)
    scan = torch.cat([100 * bright + 900, bright, torch.ones_like(bright)], dim=2)
    found = inferer(scan, nn.Identity()).split(16, dim=2)
    assert torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.allclose(found[1], (bright - bright.mean()) / bright.std(correction=0), atol=1e-5)
    assert not found[2].any()
    published = WindowInferer(roi_size=(16, 16, 16), overlap=0, normalise=False)
    assert torch.equal(
        published(scan, nn.Identity()), SlidingWindowInferer((16, 16, 16), overlap=0)(scan, nn.Identity())
    )


def test_flips_average_probabilities_over_all_mirrored_copies() -> None:
    network = nn.Conv3d(1, 1, 3, padding=1)
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    inferer = WindowInferer(roi_size=(8, 8, 8), flips=[0, 2], normalise=False)
    copies = [network(image.flip(axes)).flip(axes).sigmoid() for axes in ((), (2,), (4,), (2, 4))]
    with torch.no_grad():
        found = inferer(image, network)
        assert torch.allclose(found.sigmoid(), sum(copies) / 4, atol=1e-5)
        assert torch.allclose(inferer(image.flip([2]), network), found.flip([2]), atol=1e-4)


def test_learning_rate_rises_and_falls_by_epoch() -> None:
    """The rate of an epoch depends on it alone, whatever run came before; of six steps up, then half a cosine."""
    parser = config("train", network=nn.Linear(1, 1), max_epochs=99)
    rate = parser.get_parsed_content("lr_scheduler").lr_lambdas[0]
    assert [rate(epoch) for epoch in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert [rate(epoch) for epoch in (25, 50, 75)] == pytest.approx([(2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert 0 < rate(99) < 1e-3


def meta(mask: torch.Tensor) -> MetaTensor:
    return MetaTensor(mask[None].to(torch.uint8), affine=np.diag([2.0, 1.0, 1.0, 1.0]))


def test_empty_masks() -> None:
    empty, block = torch.zeros(8, 8, 8), torch.zeros(8, 8, 8)
    block[2:4, 2:6, 2:6] = 1
    spacing = [1.0, 1.0, 1.0]
    both, found, missed = (
        scores(*masks, spacing=spacing) for masks in ((empty, empty), (block, empty), (empty, block))
    )
    assert both["dice"] == both["iou"] == 1
    assert np.isnan([both[name] for name in ("precision", "recall", "hd", "hd95", "asd")]).all()
    for one in found, missed:
        assert one["dice"] == one["iou"] == 0
        assert one["hd"] == one["hd95"] == one["asd"] == np.inf
    assert (found["precision"], missed["recall"]) == (0, 0)


def test_tables_of_scores(tmp_path: Path) -> None:
    """A case by hand, one that is missed, and one without an atrium: which means have which cases in them."""
    block, shifted, empty = (torch.zeros(8, 8, 8) for _ in range(3))
    block[2:4, 2:6, 2:6] = 1
    shifted[3:5, 2:6, 2:6] = 1  # by one voxel of 2 mm
    pairs = {"a": (shifted, block), "b": (empty, block), "c": (empty, empty)}
    engine = Engine(
        lambda _, batch: [
            {"image": meta(empty), "pred": meta(case["found"]), "label": meta(case["true"])} for case in batch
        ]
    )
    CaseScores(str(tmp_path / "metrics.csv")).attach(engine)
    engine.run([[{"case": name, "found": found, "true": true}] for name, (found, true) in pairs.items()])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dice"] for row in rows] == [row["dice_LA"] for row in rows] == ["0.5", "0.0", "1.0"]
    assert [row["hd95_LA"] for row in rows] == ["2.0", "inf", ""]
    with (tmp_path / "metrics_summary.csv").open(newline="") as file:
        summary = {line["score"]: line for line in csv.DictReader(file)}
    dice, hd95 = ({k: float(v) for k, v in summary[name].items() if k != "score"} for name in ("dice_LA", "hd95_LA"))
    assert (dice["mean"], dice["cases"]) == (0.5, 3)
    assert (dice["mean_present"], dice["present"]) == (0.25, 2)
    assert (hd95["mean"], hd95["cases"], hd95["infinite"], hd95["present"]) == (2, 1, 1, 1)
