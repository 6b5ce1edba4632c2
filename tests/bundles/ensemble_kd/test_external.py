"""Members of ensemble_kd_kits_ct from other bundles: the atrial V-Net of this collection, and small ones made here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import KeepLargestConnectedComponent, Orientation, Spacing
from scipy import ndimage

from ensemble_kd.ensemble import Ensemble
from ensemble_kd.external import BundleMember
from tests.bundles.ensemble_kd.bundles import SHAPE, UNET, make_scan, member, own_grid, pointwise, write
from tests.conftest import NamedPath
from tests.support.runs import run
from tools import REPO

ATRIAL = "vnet_atrial_mri"
SETTINGS = {"locate": False, "pixdim": [2.0, 2.0, 2.0], "patch_size": [32, 32, 16]}
TINY = {"network_def#channels": [2, 4, 8, 16, 32]}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan; read only."""
    return make_scan(tmp_path_factory.mktemp("scan") / "a.nii.gz")


def plain(volume: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(volume).as_subclass(torch.Tensor)


def answer(made: BundleMember, image: torch.Tensor) -> torch.Tensor:
    found = plain(made(image))
    assert found.shape == (1, len(made.channels), *image.shape[2:])
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.allclose(found.sum(1), torch.ones(1), atol=1e-5)
    return found


def atrial(weights: Path, **options: Any) -> BundleMember:
    given = {"weights": str(weights / "model.pt"), "overrides": SETTINGS | TINY, **options}
    return member(REPO / "bundles" / ATRIAL, [[], [0]], **given)


def test_atrial_bundle_gives_what_its_own_config_gives(scan: Path, tiny_weights: NamedPath) -> None:
    """Its own evaluator, with post-processing up to the way back to the scan's grid."""
    parser = ConfigParser()
    parser.read_config(str(REPO / f"bundles/{ATRIAL}/configs/inference.yaml"))
    files = {"dataset_dir": str(scan), "device": torch.device("cpu"), "amp": False, "handlers": []}
    parser.update({**SETTINGS, **TINY, **files})
    parser.update({"postprocessing::transforms": parser["postprocessing::transforms"][:2]})
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(tiny_weights(ATRIAL) / "model.pt", weights_only=True))
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    expected = plain(evaluator.state.output[0]["pred"])
    found = answer(atrial(tiny_weights(ATRIAL)), own_grid(scan))
    assert expected.std() > 0.01
    assert torch.allclose(found[0, 1:], expected, atol=1e-5)
    assert torch.allclose(found[0, :1], 1 - expected, atol=1e-5)


def test_atrial_bundle_gives_the_mask_that_it_saves(scan: Path, tiny_weights: NamedPath, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tiny_weights(ATRIAL))
    run(ATRIAL, "inference", data=scan, folder=tmp_path, **SETTINGS)
    (path,) = (tmp_path / "eval").glob("a_*.nii.gz")
    saved = torch.from_numpy(np.asarray(nibabel.load(path).dataobj))
    found = answer(atrial(tiny_weights(ATRIAL)), own_grid(scan))[0, 1:] >= 0.5
    assert 0.01 < saved.float().mean() < 0.99
    assert (KeepLargestConnectedComponent(applied_labels=1)(found.float())[0] == saved).float().mean() > 0.9999


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.5), (0.9, 4.0, 1.1)])
def test_answer_on_another_grid_is_interpolated_linearly_up_to_the_rim(
    spacing: Sequence[float], scan: Path, tmp_path: Path
) -> None:
    made = member(write(tmp_path / "toy"), [[0], [1], [2]])
    whole = answer(made, own_grid(scan))[0].numpy()
    image = own_grid(scan, Orientation("SPL", labels=None), Spacing(spacing))
    found = answer(made, image)[0]
    target: MetaTensor = image[0]
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in target.shape[1:]), indexing="ij")).reshape(3, -1)
    points = np.linalg.solve(nibabel.load(scan).affine, target.affine.numpy() @ np.vstack([voxels, 0 * voxels[:1] + 1]))
    expected = [ndimage.map_coordinates(channel, points[:3], order=1, mode="nearest") for channel in whole]
    np.testing.assert_allclose(found.reshape(3, -1), expected, rtol=0, atol=1e-4)
    assert points.min() < -0.1  # beyond the centres of the outermost voxels


def test_softmax_of_a_plain_network_by_hand(scan: Path, tmp_path: Path) -> None:
    """Classes swapped and summed, and the discretisation left out."""
    network = UNet(**UNET).eval()
    network.load_state_dict(torch.load(write(tmp_path / "toy") / "models/model.pt", weights_only=True))
    image = own_grid(scan)
    scaled = plain((image - image.min()) / (image.max() - image.min()))
    with torch.no_grad():
        expected = network(scaled).softmax(1)
    assert torch.allclose(answer(member(tmp_path / "toy", [[1], [2], [0]]), image), expected[:, [1, 2, 0]], atol=1e-5)
    sums = torch.stack([expected[:, 1], expected[:, 0] + expected[:, 2]], 1)
    for channels in ([[1], [0, 2]], [[1], []], [[], [0, 2]]):
        assert torch.allclose(answer(member(tmp_path / "toy", channels), image), sums, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "channels", "expected"),
    [
        ((0.8,), [[], [0]], (0.2, 0.8)),
        ((0.8,), [[0], []], (0.8, 0.2)),
        ((0.3, 0.2), [[], [0], [1]], (0.5, 0.3, 0.2)),
        ((0.3, 0.2), [[1], [], [0]], (0.2, 0.5, 0.3)),
        ((0.3, 0.2, 0.1), [[], [0, 2], [1]], (0.4, 0.4, 0.2)),
        ((0.8, 0.8), [[], [0], [1]], (0.0, 0.5, 0.5)),  # regions that overlap
        ((0.3, 0.2), [[0], [1]], (0.8, 0.2)),  # the first class gets what is left
    ],
)
def test_maps_of_channels_by_hand(
    given: Sequence[float], channels: Sequence[Sequence[int]], expected: Sequence[float], scan: Path, tmp_path: Path
) -> None:
    bundle = pointwise(tmp_path / "toy", *torch.tensor(given).logit().tolist())
    found = answer(member(bundle, channels), own_grid(scan))[0]
    for channel, value in zip(found, expected, strict=True):
        assert channel.min().item() == pytest.approx(value, abs=1e-5)
        assert channel.max().item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("channels", [[[], [0]], [[1], [0]]])
def test_what_the_bundle_did_not_see_is_background(
    channels: Sequence[Sequence[int]], scan: Path, tmp_path: Path
) -> None:
    crop = {"_target_": "SpatialCropd", "keys": "image", "roi_start": [4, 4, 4], "roi_end": [10, 12, 8]}
    bundle = pointwise(tmp_path / "toy", 2.0, -2.0, further=[crop])
    found = answer(member(bundle, channels), own_grid(scan))[0, 1]
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[4:10, 4:12, 4:8] = True
    assert torch.allclose(found[inside], torch.tensor(2.0).sigmoid(), atol=1e-5)
    assert found[~inside].max() < 1e-4


def test_way_back_to_the_scan_is_linear_whatever_the_bundle_has(scan: Path, tmp_path: Path) -> None:
    """As for label maps, the way back of the second bundle takes the nearest voxel."""
    coarse = {"_target_": "Spacingd", "keys": "image", "pixdim": [4.0, 4.0, 6.0]}
    size = {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": [16, 16, 16]}
    invert = {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing"}
    nearest = {"_target_": "Compose", "transforms": ["@activation", invert | {"nearest_interp": True}, "@discrete"]}
    one = write(tmp_path / "one", further=[coarse, size])
    two = write(tmp_path / "two", further=[coarse, size], postprocessing=nearest)
    found = [answer(member(bundle, [[0], [1], [2]]), own_grid(scan)) for bundle in (one, two)]
    assert torch.equal(*found)
    assert len(np.unique(found[0][0, 1])) > 5000  # of 8008 voxels, where the coarse scan has 700


def test_grid_of_a_bundle_that_does_not_return_to_the_scan(scan: Path, tmp_path: Path) -> None:
    crop = {"_target_": "SpatialCropd", "keys": "image", "roi_start": [4, 4, 4], "roi_end": [10, 12, 8]}
    alone = {"_target_": "Compose", "transforms": ["@activation"]}
    bundle = pointwise(tmp_path / "toy", 2.0, further=[crop], postprocessing=alone)
    found = answer(member(bundle, [[], [0]]), own_grid(scan))[0, 1]
    assert torch.allclose(found[4:10, 4:12, 4:8], torch.tensor(2.0).sigmoid(), atol=1e-5)
    assert not found[:, :, 12:].any()
    assert not found[:, 18:].any()


def test_member_of_an_ensemble(scan: Path, tmp_path: Path) -> None:
    made = [BundleMember(f"m{i}", str(pointwise(tmp_path / str(i), i - 0.5)), channels=[[], [0]]) for i in range(2)]
    ensemble = Ensemble(made, classes=2)
    ensemble.load()
    with torch.no_grad():
        found = plain(ensemble(own_grid(scan)))[0]
    low, high = (torch.tensor(value).sigmoid() for value in (-0.5, 0.5))
    assert torch.allclose(found[:2], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(found[2:], (high - low) / 2, atol=1e-5)
    assert [entry["bundle"] for entry in ensemble.identity()] == ["0", "1"]
    assert len({entry["sha256"] for entry in ensemble.identity()}) == 2
