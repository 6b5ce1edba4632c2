"""The ensemble of ensemble_kd_kits_ct: mean and spread against the reference implementation and by hand, rejections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from ensemble_kd.annotation import Annotation
from ensemble_kd.ensemble import Ensemble, NetworkMember, SplitMapsd
from ensemble_kd.inferers import OrthogonalSliceInferer
from ensemble_kd.networks import DilatedCNN
from ensemble_kd.shared.validation import InputError
from tests.bundles.ensemble_kd.reference import filled
from tools import REPO

GOLDEN = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
VOLUMES = np.load(REPO / "tests/bundles/ensemble_kd/golden.npz")
SHAPE = (4, 3, 5)


class Constant(nn.Module):
    """Gives the same probabilities everywhere."""

    def __init__(self, classes: Sequence[float]) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.tensor(classes))

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        return self.classes.detach().view(1, -1, 1, 1, 1).expand(1, -1, *scan.shape[2:])


class Stored(nn.Module):
    """Gives a stored volume, whatever it sees."""

    def __init__(self, volume: torch.Tensor) -> None:
        super().__init__()
        self.volume = nn.Parameter(volume)

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        return self.volume.detach()[None]


def member(folder: Path, name: str, network: nn.Module, inferer: Inferer | None = None) -> NetworkMember:
    torch.save(network.state_dict(), folder / f"{name}.pt")
    return NetworkMember(name, network, weights=str(folder / f"{name}.pt"), inferer=inferer or SimpleInferer())


def parts(ensemble: Ensemble, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations `(C, H, W, D)`."""
    with torch.no_grad():
        found = ensemble(torch.zeros(1, 1, *shape))
    assert found.dtype == torch.float32
    assert found.shape == (1, 2 * ensemble.classes, *shape)
    return found[0, : ensemble.classes], found[0, ensemble.classes :]


def golden_network(index: int) -> DilatedCNN:
    """The reference's members: the second has the first's weights, but for the output layer, which is -0.7 times it."""
    network = filled(DilatedCNN(3, 35))
    layer = network.head.get_submodule("logits")
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight *= (1, -0.7)[index]
        layer.bias.copy_(torch.from_numpy(VOLUMES[f"bias{index}"]))
    return network


def test_mean_and_spread_of_two_networks_are_those_of_the_reference(tmp_path: Path) -> None:
    inferer = OrthogonalSliceInferer(margin=17)
    ensemble = Ensemble([member(tmp_path, f"m{i}", golden_network(i), inferer) for i in range(2)], classes=3)
    ensemble.load()
    with torch.no_grad():
        found = ensemble(torch.from_numpy(VOLUMES["slices/image"])[None, None])[0, ..., 1::2, 1::2, 1::2].numpy()
    np.testing.assert_allclose(found[:3], GOLDEN["ensemble.mean"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[3:], GOLDEN["ensemble.std"], rtol=0, atol=1e-5)
    assert GOLDEN["ensemble.std"].max() > 0.1


def test_mean_and_spread_of_two_by_hand(tmp_path: Path) -> None:
    members = [member(tmp_path, "one", Constant([0.7, 0.2, 0.1])), member(tmp_path, "two", Constant([0.3, 0.2, 0.5]))]
    mean, spread = parts(Ensemble(members, classes=3), *SHAPE)
    assert mean.amin((1, 2, 3)).tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert mean.amax((1, 2, 3)).tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert spread.amin((1, 2, 3)).tolist() == pytest.approx([0.2, 0.0, 0.2], abs=1e-7)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_many_members_have_numpys_mean_and_population_deviation(count: int, tmp_path: Path) -> None:
    torch.manual_seed(count)
    volumes = (3 * torch.randn(count, 4, *SHAPE)).softmax(1)
    members = [member(tmp_path, str(index), Stored(volume)) for index, volume in enumerate(volumes)]
    mean, spread = parts(Ensemble(members, classes=4), *SHAPE)
    np.testing.assert_allclose(mean, volumes.double().numpy().mean(0), rtol=0, atol=2e-7)
    np.testing.assert_allclose(spread, volumes.double().numpy().std(0, ddof=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(mean.sum(0), 1, rtol=0, atol=1e-6)


def test_one_member_is_itself_and_equals_do_not_spread(tmp_path: Path) -> None:
    volume = torch.rand(2, *SHAPE).softmax(0)
    mean, spread = parts(Ensemble([member(tmp_path, "x", Stored(volume))], classes=2), *SHAPE)
    assert torch.equal(mean, volume)
    assert not spread.any()
    equals = [member(tmp_path, name, Stored(volume)) for name in "abcde"]
    assert parts(Ensemble(equals, classes=2), *SHAPE)[1].max() < 1e-6


def test_members_see_the_scan_and_none_of_it_changes(tmp_path: Path) -> None:
    """The inferer runs, in the member's own way, on the scan that the ensemble gets."""

    class Doubled(Inferer):
        def __call__(
            self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            return network(2 * inputs)

    class Sign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, scan: torch.Tensor) -> torch.Tensor:
            return torch.cat([scan.detach(), 1 - scan], 1)

    scan = torch.rand(1, 1, *SHAPE) / 2
    kept = scan.clone()
    with torch.no_grad():
        found = Ensemble([member(tmp_path, "x", Sign(), Doubled())], classes=2)(scan)
    assert torch.allclose(found[:, :1], 2 * kept)
    assert torch.equal(scan, kept)


def test_weights_are_loaded_and_dropout_is_off(tmp_path: Path) -> None:
    network = filled(DilatedCNN(3, 35))
    made = member(tmp_path, "x", network, OrthogonalSliceInferer(margin=17))
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    Ensemble([made], classes=3).load()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_refused_ensembles(tmp_path: Path) -> None:
    made = member(tmp_path, "x", Constant([0.5, 0.5]))
    with pytest.raises(InputError, match=r"members: must be one or more with different names, got \[\]"):
        Ensemble([], classes=2)
    with pytest.raises(InputError, match=r"different names, got \['x', 'x'\]"):
        Ensemble([made, made], classes=2)
    with pytest.raises(InputError, match="member x: must have 3 classes, has 2"):
        Ensemble([made], classes=3).load()


def test_refused_weights(tmp_path: Path) -> None:
    made = member(tmp_path, "x", Constant([0.5, 0.5]))
    torch.save({"classes": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt: does not fit the chosen Constant: classes has shape \(3,\)"):
        Ensemble([made], classes=2).load()
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.pt: cannot be read"):
        Ensemble([made], classes=2).load()
    (tmp_path / "x.pt").unlink()
    with pytest.raises(InputError, match=r"x\.pt: there are no such weights"):
        Ensemble([made], classes=2).load()


def test_identity_is_name_and_content_of_the_weights(tmp_path: Path) -> None:
    ensemble = Ensemble([member(tmp_path, "x", Constant([0.5, 0.5]))], classes=2)
    (first,) = ensemble.identity()
    assert first == {"name": "x", "sha256": hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()}
    torch.save({"classes": torch.ones(2)}, tmp_path / "x.pt")
    assert ensemble.identity()[0]["sha256"] != first["sha256"]


def test_parts_of_the_maps() -> None:
    """The spread is the largest of any class; a channel behind, the organ's, belongs to neither."""
    maps = torch.rand(5, *SHAPE)
    affine = torch.diag(torch.tensor([1.5, 1.5, 2.5, 1.0], dtype=torch.float64))
    item = SplitMapsd("pred", classes=2)({"pred": MetaTensor(maps, affine=affine), "case": "a"})
    assert torch.equal(item["soft"].as_tensor(), maps[:2])
    assert torch.equal(item["spread"].as_tensor(), torch.maximum(maps[2], maps[3])[None])
    assert torch.equal(item["pred"].as_tensor(), maps[[0, 1, 4]])
    assert all(torch.equal(item[key].affine, affine) for key in ("pred", "soft", "spread"))


def annotation(folder: Path, *, classes: Sequence[float] = (0.5, 0.5), settings: Any = None) -> Annotation:
    ensemble = Ensemble([member(folder, "x", Constant(classes))], classes=2)
    cases = [{"case": name, "image": f"/data/{name}.nii.gz"} for name in "abc"]
    return Annotation(cases, output_dir=str(folder / "out"), ensemble=ensemble, settings=settings)


def test_only_cases_with_a_label_map_are_done(tmp_path: Path) -> None:
    made, evaluator = annotation(tmp_path), Mock()
    assert [case["case"] for case in made.remaining] == ["a", "b", "c"]
    for name, kind in (("a", "label"), ("b", "soft"), ("b", "spread")):
        path = made.file(name, kind)
        assert path == tmp_path / f"out/{name}/{name}_{kind}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [case["case"] for case in made.remaining] == ["b", "c"]
    made.cases[0] = {"case": "a", "image": str(tmp_path / "a.nii.gz")}
    (tmp_path / "a.nii.gz").touch()  # later than its label
    assert [case["case"] for case in made.remaining] == ["a", "b", "c"]
    made.file("a", "label").touch()
    made.run(evaluator)
    for name in "bc":
        made.file(name, "label").parent.mkdir(exist_ok=True)
        made.file(name, "label").touch()
    made.run(evaluator)
    evaluator.run.assert_called_once()


def test_mark_tells_whose_the_folder_is(tmp_path: Path) -> None:
    made = annotation(tmp_path, settings={"pixdim": [1.5, 1.5, 2.5]})
    made.run(Mock())
    mark = json.loads((tmp_path / "out/ensemble.json").read_text())
    assert mark == {"members": made.ensemble.identity(), "settings": {"pixdim": [1.5, 1.5, 2.5]}}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ensemble.json"]


@pytest.mark.parametrize("other", [{"classes": (0.4, 0.6)}, {"settings": {"pixdim": None}}])
def test_folder_of_another_ensemble_or_other_settings_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    annotation(tmp_path).run(Mock())
    evaluator = Mock()
    with pytest.raises(InputError, match=r"ensemble\.json: the folder is of another ensemble or other settings"):
        annotation(tmp_path, **other).run(evaluator)
    evaluator.run.assert_not_called()
    annotation(tmp_path).run(evaluator)
    evaluator.run.assert_called_once()
