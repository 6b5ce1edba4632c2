"""The cascade of ensemble_kd_kits_ct: which box the network sees, and where its answer comes to lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.nn import functional

from ensemble_kd.cascade import CascadeInferer
from ensemble_kd.postprocessing import LabelInsideOrgand
from ensemble_kd.shared.tables import CaseReport

SHAPE = (30, 26, 22)
AFFINE = torch.tensor([[-1.5, 0, 0, 40], [0, 1.5, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]], dtype=torch.float64)


class Bright(nn.Module):
    """Locator: organ is where the scan is above 100."""

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        organ = torch.where(scan > 100, 0.9, 0.2)
        return torch.cat([1 - organ, organ], 1)


class Smooth(nn.Module):
    """Network of three classes that sees two voxels around each; notes what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        self.seen.append(scan)
        mean = functional.avg_pool3d(torch.as_tensor(scan).as_subclass(torch.Tensor).float(), 5, 1, 2) / 100
        return torch.cat([mean, mean**2 - 1, 1 - mean], 1).softmax(1)


def scan(*blocks: tuple[slice, slice, slice]) -> torch.Tensor:
    """Noise around 0, 200 higher inside the blocks, `(1, 1, H, W, D)`."""
    volume = 10 * torch.from_numpy(np.random.RandomState(0).randn(1, 1, *SHAPE)).float()
    for block in blocks:
        volume[(0, 0, *block)] += 200
    return volume


def cascade(inferer: Inferer | None = None, **options: Any) -> CascadeInferer:
    return CascadeInferer(Bright(), locator_inferer=SimpleInferer(), inferer=inferer or SimpleInferer(), **options)


FIRST = (slice(8, 12), slice(9, 14), slice(10, 13))
SECOND = (slice(18, 21), slice(11, 13), slice(8, 11))
CROSSING = (slice(0, 3), slice(21, 26), slice(9, 12))
BOX = (slice(8 - 4, 21 + 4), slice(9 - 4, 14 + 4), slice(8 - 4, 13 + 4))


def test_box_and_channels_by_hand() -> None:
    volume, network = scan(FIRST, SECOND), Smooth()
    found = cascade(context=4)(volume, network)
    assert found.shape == (1, 4, *SHAPE)
    assert found.dtype == torch.float32
    (seen,) = network.seen
    assert torch.equal(torch.as_tensor(seen).as_subclass(torch.Tensor), volume[(..., *BOX)])
    organ = torch.where(volume > 100, 0.9, 0.2)
    assert torch.equal(found[:, 3:], organ)  # everywhere, not only in the box
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[BOX] = True
    assert (found[0, 0][~inside] == 1).all()
    assert not found[0, 1:3][:, ~inside].any()
    assert torch.equal(found[(0, slice(0, 3), *BOX)], Smooth()(volume[(..., *BOX)])[0])


def test_inside_the_box_the_whole_scans_answer_is_given() -> None:
    """Away from the box's border by what the network sees."""
    volume = scan(FIRST, SECOND)
    found, whole = cascade(context=4)(volume, Smooth()), Smooth()(volume)
    core = (slice(None), *(slice(side.start + 2, side.stop - 2) for side in BOX))
    assert torch.allclose(found[0, :3][core], whole[0][core], atol=1e-6)
    assert not torch.allclose(found[(0, slice(0, 3), *BOX)], whole[(0, slice(None), *BOX)], atol=1e-3)


def test_organ_at_the_border() -> None:
    network = Smooth()
    cascade(context=4)(scan(CROSSING), network)
    assert network.seen[0].shape == (1, 1, 7, 9, 11)
    cascade(context=100)(scan(CROSSING), network)
    assert network.seen[1].shape == (1, 1, *SHAPE)


def test_smaller_components_do_not_widen_the_box() -> None:
    network = Smooth()
    speck = (slice(27, 28), slice(3, 4), slice(20, 21))
    cascade(context=4)(scan(FIRST, SECOND, speck), network)
    assert network.seen[0].shape[2:] == tuple(side.stop - side.start for side in BOX)
    cascade(context=4, components=1)(scan(FIRST, SECOND, speck), network)
    assert network.seen[1].shape[2:] == (4 + 8, 5 + 8, 3 + 8)
    cascade(context=0, components=3)(scan(FIRST, SECOND, speck), network)
    assert network.seen[2].shape[2:] == (28 - 8, 14 - 3, 21 - 8)


@pytest.mark.parametrize("context", [4, 24])
def test_scan_without_organ_is_background(context: int) -> None:
    volume = scan()
    found = cascade(context=context)(volume, Smooth())
    assert found.shape == (1, 4, *SHAPE)
    assert (found[0, 0] == 1).all()
    assert not found[0, 1:3].any()
    assert torch.equal(found[0, 3], torch.full(SHAPE, 0.2))
    assert not LabelInsideOrgand("pred", classes=3)({"pred": found[0]})["pred"].any()


def test_whole_numbers_do_not_round_the_probabilities() -> None:
    volume = scan(FIRST)
    found = cascade(context=4)(volume.round().to(torch.int16), Smooth())
    assert torch.equal(found, cascade(context=4)(volume.round(), Smooth()))
    assert found.dtype == torch.float32


class Where(Inferer):
    """Gives the coordinates in mm of each voxel of its input; notes whence that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        volume = inputs[0]
        assert isinstance(volume, MetaTensor)
        self.files.append(volume.meta["filename_or_obj"])
        axes = [torch.arange(size, dtype=torch.float64) for size in volume.shape[1:]]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        points = torch.einsum("ij,jhwd->ihwd", volume.affine[:3, :3], voxels) + volume.affine[:3, 3, None, None, None]
        return points[None].float()


def test_grid_and_file_are_handed_on() -> None:
    """From a loader as MONAI's engines have it, and from a volume without a loader."""
    single = MetaTensor(scan(FIRST, SECOND)[0], affine=AFFINE, meta={"filename_or_obj": "/data/a.nii.gz"})
    (batch,) = DataLoader(Dataset([{"image": single}]), batch_size=1)
    axes = [torch.arange(size, dtype=torch.float64) for size in SHAPE]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    points = (torch.einsum("ij,jhwd->ihwd", AFFINE[:3, :3], voxels) + AFFINE[:3, 3, None, None, None]).float()
    for image in (batch["image"], single[None]):
        inferer = Where()
        found = cascade(inferer, context=4)(image, nn.Identity())
        assert torch.allclose(torch.as_tensor(found[(0, slice(0, 3), *BOX)]), points[(slice(None), *BOX)], atol=1e-4)
        assert inferer.files == ["/data/a.nii.gz"]
        assert isinstance(found, MetaTensor)
        assert found[0].meta["filename_or_obj"] == "/data/a.nii.gz"
        assert torch.equal(found[0].affine, AFFINE)


def test_label_map_of_the_cascade_lies_in_the_organs() -> None:
    found = cascade(context=4)(scan(FIRST, SECOND, CROSSING), Smooth())[0]
    label = LabelInsideOrgand("pred", classes=3, num_components=2)({"pred": found})["pred"][0]
    organ = torch.zeros(SHAPE, dtype=torch.bool)
    organ[FIRST] = organ[CROSSING] = True  # the two largest
    assert not label[~organ].any()
    assert label[FIRST].any()
    assert not label[SECOND].any()


def test_report_has_the_volumes_in_ml(tmp_path: Path) -> None:
    label = MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.uint8), affine=AFFINE)
    label.meta["filename_or_obj"] = "/data/a.nii.gz"
    label[(0, *FIRST)] = 1  # 60 voxels of 5.625 mm3
    label[(0, *SECOND)] = 2  # 18
    engine = Engine(lambda engine, batch: [{"pred": label}])
    report = CaseReport(str(tmp_path / "new/report.csv"), structures={"kidney": [1], "both": [1, 2], "none": [3]})
    report.attach(engine)
    for _ in range(2):  # a second run does not add to the first one's rows
        engine.run([[{"case": "a"}]])
    assert (tmp_path / "new/report.csv").read_text().splitlines() == [
        "case,kidney_ml,both_ml,none_ml,image,error",
        "a,0.34,0.44,0.0,/data/a.nii.gz,",
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.csv"]
