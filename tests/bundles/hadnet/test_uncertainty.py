"""Monte-Carlo dropout, uncertainty maps and their BraTS 2019 score."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from hadnet.shared.regions import REGIONS, region_mask
from hadnet.shared.validation import InputError
from hadnet.uncertainty import (
    THRESHOLDS,
    MonteCarloDropout,
    UncertaintyMapsd,
    region_uncertainty,
    uncertainty_scores,
)


class Network(nn.Module):
    """A convolution between two dropout layers and a normalisation with running statistics."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        layers = (nn.Dropout3d(p), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Dropout(0.9), nn.Dropout3d(p))
        self.layers = nn.Sequential(*layers)
        self.seen: list[list[bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append([layer.training for layer in self.layers])
        if x.isnan().any():
            raise ArithmeticError
        logits: torch.Tensor = self.layers(x)
        return logits


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


SCAN = torch.linspace(-2, 2, 2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)


def test_no_sample_is_the_network_itself(network: Network) -> None:
    logits = MonteCarloDropout()(SCAN, network)
    assert torch.equal(logits, network(SCAN))
    assert logits.requires_grad
    assert not any(network.seen[0])


@pytest.mark.parametrize("samples", [1, 3, 20])
def test_without_anything_dropped_the_mean_is_the_softmax(samples: int) -> None:
    network = Network(p=0).eval()
    found = MonteCarloDropout(samples)(SCAN, network)
    assert found.shape == (2, 4, 4, 5, 6)
    torch.testing.assert_close(found.softmax(1), network(SCAN).softmax(1))


def test_mean_of_the_passes(network: Network) -> None:
    """The same draws by hand; the softmax of the result is the mean of the softmaxes, not of the logits."""
    torch.manual_seed(7)
    found = MonteCarloDropout(5)(SCAN, network)
    for index in (0, 4):
        network.layers[index].train()
    torch.manual_seed(7)
    expected = torch.stack([network(SCAN).softmax(1) for _ in range(5)]).mean(0)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.softmax(1), expected)
    assert not found.requires_grad


def test_only_channel_dropout_trains_and_modes_come_back(network: Network) -> None:
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.layers[4].train()
    before = [module.training for module in network.modules()]
    MonteCarloDropout(2)(SCAN, network)
    assert network.seen == [[True, False, False, False, True]] * 2
    assert [module.training for module in network.modules()] == before
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in network.named_buffers())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error(network: Network) -> None:
    with pytest.raises(ArithmeticError):
        MonteCarloDropout(2)(torch.full_like(SCAN, math.nan), network)
    assert network.seen == [[True, False, False, False, True]]
    assert not any(module.training for module in network.modules())
    assert torch.is_grad_enabled()


def test_classes_without_probability_stay_finite() -> None:
    """A logit of -1000 has probability 0; neither its logarithm nor the softmax of that is infinite or NaN."""
    network = nn.Dropout3d(0)
    logits = torch.tensor([0.0, -1000, -1000, 0]).view(1, 4, 1, 1, 1)
    found = MonteCarloDropout(4)(logits, network)
    assert found.isfinite().all()
    assert found.min() == pytest.approx(-87.3365)
    assert MonteCarloDropout(4)(logits.half(), network).dtype == torch.float32


def test_metadata_stay(network: Network) -> None:
    affine = torch.diag(torch.tensor([1.0, 2, 3, 1]))
    found = MonteCarloDropout(2)(MetaTensor(SCAN, affine=affine), network)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, affine.double())


def test_other_arguments_reach_the_network() -> None:
    class Scaled(nn.Dropout3d):
        def forward(self, input: torch.Tensor, factor: float = 1, shift: float = 0) -> torch.Tensor:
            return input * factor + shift

    found = MonteCarloDropout(2)(SCAN, Scaled(), 2, shift=torch.arange(3).view(3, 1, 1, 1))
    torch.testing.assert_close(found.exp(), (2 * SCAN + torch.arange(3).view(3, 1, 1, 1)).softmax(1))


def test_samples_that_cannot_be_taken() -> None:
    with pytest.raises(InputError, match="samples: must be 0 or more, got -1"):
        MonteCarloDropout(-1)
    with pytest.raises(InputError, match="samples: must be 0 for a network without dropout, got 3"):
        MonteCarloDropout(3)(SCAN, nn.Conv3d(3, 4, 1))


def voxels(*probabilities: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(probabilities).T.reshape(4, -1, 1, 1)


def test_uncertainty_of_regions() -> None:
    """By hand: H2(0.25) / ln 2 = 0.811278, H2(0.125) / ln 2 = 0.543564; certain either way is 0."""
    maps = region_uncertainty(voxels((0.25, 0.125, 0.5, 0.125), (0, 0, 0, 1), (0.5, 0, 0.5, 0), (1, 0, 0, 0)))
    found = {region: values.flatten().tolist() for region, values in maps.items()}
    assert list(found) == ["ET", "TC", "WT"]
    assert found["ET"] == pytest.approx([54.3564, 0, 0, 0])
    assert found["TC"] == pytest.approx([81.1278, 0, 0, 0])
    assert found["WT"] == pytest.approx([81.1278, 0, 100, 0])
    assert all(values.shape == (1, 4, 1, 1) and values.dtype == torch.float32 for values in maps.values())


def test_outside_the_field_of_view_all_is_certain() -> None:
    """There no class has any probability; 1 - p of the background would be 1."""
    assert all(not values.any() for values in region_uncertainty(torch.zeros(4, 2, 3, 4)).values())


def test_uncertainty_never_leaves_its_range() -> None:
    """Neither near one half nor where rounding takes a sum above 1."""
    half = torch.linspace(0.499, 0.501, 2001)
    maps = region_uncertainty(torch.stack([half, half, half * 0, half + 0.5]).view(4, -1, 1, 1))
    assert all(values.min() >= 0 and values.max() <= 100 for values in maps.values())
    assert maps["TC"].isfinite().all()
    assert maps["TC"].min() == 0
    assert region_uncertainty(voxels((0.5, 0.5, 0, 0)))["TC"].item() == 100


def test_maps_as_entries_of_an_item() -> None:
    affine = np.diag([1.0, 2, 3, 1])
    pred = MetaTensor(torch.rand(4, 3, 4, 5).softmax(0), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    item: dict[Hashable, Any] = {"pred": pred, "case": "a"}
    result = UncertaintyMapsd()(item)
    assert list(item) == ["pred", "case"]
    assert result["pred"] is pred
    for region, values in region_uncertainty(pred).items():
        found = result[f"uncertainty_{region}"]
        assert isinstance(found, MetaTensor)
        assert (found.dtype, found.meta["filename_or_obj"]) == (torch.float32, "a.nii.gz")
        np.testing.assert_array_equal(found.affine, affine)
        assert torch.equal(found.as_tensor(), values)
    assert UncertaintyMapsd(allow_missing_keys=True)({"case": "a"}) == {"case": "a"}


def test_masks_of_regions() -> None:
    """Values of files are 0, 1, 2, 4; of classes 0, 1, 2, 3."""
    files, classes = torch.tensor([0, 1, 2, 4], dtype=torch.uint8), torch.arange(4.0)
    expected = {"ET": [0, 0, 0, 1], "TC": [0, 1, 0, 1], "WT": [0, 1, 1, 1]}
    for region in REGIONS:
        assert region_mask(MetaTensor(files), region).int().tolist() == expected[region]
        assert region_mask(classes, region, values=range(4)).int().tolist() == expected[region]


TRUE = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1]).bool()
FOUND = torch.tensor([1, 1, 0, 1, 0, 0, 0, 1]).bool()
DOUBT = torch.tensor([10, 60, 90, 80, 5, 30, 20, 40.0])
EVERYWHERE = torch.ones(8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((0, 25, 50, 75, 100), (0.96875, 0.375, 0.208333, 0.795139)),
        (THRESHOLDS, (0.957589, 0.354167, 0.170833, 0.810863)),
    ],
)
def test_eight_voxels(thresholds: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = uncertainty_scores(FOUND, TRUE, uncertainty=DOUBT, brain=EVERYWHERE, thresholds=thresholds)
    names = ("dice_auc", "ftp_auc", "ftn_auc", "score")
    assert found == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-6)


def test_voxels_outside_the_brain_do_not_count() -> None:
    volumes = [torch.cat([volume, volume.flip(0)]).view(4, 2, 2) for volume in (FOUND, TRUE, DOUBT, EVERYWHERE)]
    volumes[3][2:] = False
    found = uncertainty_scores(*volumes[:2], uncertainty=volumes[2], brain=volumes[3])
    assert found == uncertainty_scores(FOUND, TRUE, uncertainty=DOUBT, brain=EVERYWHERE)


def naive(found: torch.Tensor, true: torch.Tensor, *, doubt: torch.Tensor, brain: torch.Tensor) -> dict[str, float]:
    """The definition, word for word: all volumes again at every threshold."""
    dice, tp, tn = [], [], []
    for tau in THRESHOLDS:
        kept = brain & (doubt <= tau)
        size = int((found & kept).sum() + (true & kept).sum())
        tp.append(int((found & true & kept).sum()))
        tn.append(int((~found & ~true & kept).sum()))
        dice.append(2 * tp[-1] / size if size else 1.0)
    ftp, ftn = ([(counts[-1] - count) / counts[-1] if counts[-1] else 0.0 for count in counts] for counts in (tp, tn))
    areas = [float(np.trapezoid(curve, THRESHOLDS)) / 100 for curve in (dice, ftp, ftn)]
    score = (areas[0] + (1 - areas[1]) + (1 - areas[2])) / 3
    return dict(zip(("dice_auc", "ftp_auc", "ftn_auc", "score"), (*areas, score), strict=True))


@pytest.mark.parametrize(("seed", "share"), [(0, 0.5), (1, 0.1), (2, 0.0), (3, 1.0)])
def test_one_pass_is_as_good_as_forty_one(seed: int, share: float) -> None:
    """Also where many voxels lie on a threshold, and where there are no positives or no negatives."""
    generator = torch.Generator().manual_seed(seed)
    found, true, brain, exact = (torch.rand(9, 8, 7, generator=generator) < part for part in (share, share, 0.7, 0.3))
    doubt = 100 * torch.rand(9, 8, 7, generator=generator)
    doubt = torch.where(exact, (doubt / 2.5).round() * 2.5, doubt)
    scores = uncertainty_scores(found, true, uncertainty=doubt, brain=brain)
    assert scores == pytest.approx(naive(found, true, doubt=doubt, brain=brain))


def test_perfect_and_certain() -> None:
    found = uncertainty_scores(TRUE, TRUE, uncertainty=torch.zeros(8), brain=EVERYWHERE)
    assert found == {"dice_auc": 1, "ftp_auc": 0, "ftn_auc": 0, "score": 1}


def test_absent_region() -> None:
    """In neither map: Dice 1 at all thresholds, nothing to filter but true negatives."""
    none = torch.zeros(8, dtype=torch.bool)
    found = uncertainty_scores(none, none, uncertainty=torch.full((8,), 50.0), brain=EVERYWHERE)
    ftn = (50 - 2.5 / 2) / 100  # 1 until 47.5, 0 from 50
    assert found == pytest.approx({"dice_auc": 1, "ftp_auc": 0, "ftn_auc": ftn, "score": 1 - ftn / 3})
    assert not any(math.isnan(value) for value in found.values())
