"""The ensemble of the Lachinov bundle: its sums, its label maps and its members on disk, against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Identityd
from torch import nn

from lachinov_distillation.ensemble import Ensemble, EnsembleLabeld, FileMember, NetworkMember
from lachinov_distillation.inferers import FlipAverageInferer
from lachinov_distillation.shared.validation import InputError
from lachinov_distillation.transforms import NormalizePositived

SHAPE = (4, 3, 5)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


class Constant(nn.Module):
    """Predicts the same regions everywhere."""

    def __init__(self, regions: Sequence[float]) -> None:
        super().__init__()
        self.regions = nn.Parameter(torch.tensor(regions))

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        return self.regions.view(1, -1, 1, 1, 1).expand(len(scan), -1, *scan.shape[2:])


def network(tmp_path: Path, name: str, regions: Sequence[float], **options: Any) -> NetworkMember:
    module = Constant(regions)
    torch.save(module.state_dict(), tmp_path / f"{name}.pt")
    given = {"normalize": Identityd("image"), "inferer": SimpleInferer()} | options
    return NetworkMember(name, module, weights=str(tmp_path / f"{name}.pt"), **given)


def write(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return str(path)


def labelled(ensemble: Ensemble, sums: torch.Tensor, case: str = "a", **options: Any) -> dict[Hashable, Any]:
    item: dict[Hashable, Any] = {"pred": MetaTensor(sums, affine=torch.from_numpy(AFFINE)), "case": case}
    return EnsembleLabeld("pred", ensemble=ensemble, **options)(item)


def annotated(ensemble: Ensemble, **options: Any) -> dict[Hashable, Any]:
    with torch.no_grad():
        sums = ensemble(torch.ones(1, 4, *SHAPE))[0]
    return labelled(ensemble, sums, **options)


def test_mean_and_disagreement_of_two_networks_by_hand(tmp_path: Path) -> None:
    """Classes (0.1, 0.2, 0.3, 0.4) and (0.5, 0, 0.5, 0): mean (0.3, 0.1, 0.4, 0.2)."""
    members = [network(tmp_path, "one", [0.9, 0.6, 0.4]), network(tmp_path, "two", [0.5, 0.0, 0.0])]
    found = annotated(Ensemble(members, sequences=4))
    assert found["pred"].unique().tolist() == [2]
    assert found["pred"].dtype == torch.uint8
    assert found["soft"][:, 0, 0, 0].tolist() == [round(255 * value) for value in (0.7, 0.3, 0.2)]
    spread = sum((p - q) ** 2 / 4 for p, q in zip((0.1, 0.2, 0.3, 0.4), (0.5, 0, 0.5, 0), strict=True))
    assert torch.allclose(found["disagreement"].as_tensor(), torch.tensor(spread), atol=1e-6)
    assert found["disagreement"].shape == (1, *SHAPE)


def test_disagreement_is_none_between_equals_and_greatest_between_opposites(tmp_path: Path) -> None:
    equals = [network(tmp_path, name, [0.8, 0.5, 0.1]) for name in ("one", "two", "three")]
    assert annotated(Ensemble(equals, sequences=4))["disagreement"].max() < 1e-6
    opposites = [network(tmp_path, "sure", [1.0, 1.0, 1.0]), network(tmp_path, "not", [0.0, 0.0, 0.0])]
    assert annotated(Ensemble(opposites, sequences=4))["disagreement"].min().item() == pytest.approx(0.5)


def test_what_was_cropped_away_is_background(tmp_path: Path) -> None:
    """Inversion fills with zeros: they stand for background of which every network is sure."""
    members = [network(tmp_path, name, [0.9, 0.6, 0.4]) for name in ("one", "two")]
    found = labelled(Ensemble(members, sequences=4), torch.zeros(4, *SHAPE))
    assert all(found[key].max() == 0 for key in ("pred", "soft", "disagreement"))


def test_members_on_disk_count_as_much_as_networks(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[0], label[1], label[2] = 1, 2, 4
    classes = np.zeros((4, *SHAPE), np.float32)
    classes[0], classes[3] = 0.25, 0.75
    regions = np.zeros((*SHAPE, 3), np.uint8)
    regions[..., 0] = 255
    write(tmp_path / "labels/a.nii.gz", label)
    write(tmp_path / "classes/a.nii.gz", classes)
    write(tmp_path / "regions/a.nii.gz", regions)
    members: list[NetworkMember | FileMember] = [
        FileMember(kind, str(tmp_path / kind / "{case}.nii.gz"), predicts=kind)
        for kind in ("labels", "classes", "regions")
    ]
    members.append(network(tmp_path, "net", [0.0, 0.0, 0.0]))
    ensemble = Ensemble(members, sequences=4)
    ensemble.check([{"case": "a", "image": write(tmp_path / "a_t1.nii.gz", label)}])
    found = annotated(ensemble)
    # Per voxel of the four slabs: sums over (label, classes, regions, network) of background, NCR, ED, ET.
    expected = [(1.25, 1, 1, 0.75), (1.25, 0, 2, 0.75), (1.25, 0, 1, 1.75), (2.25, 0, 1, 0.75)]
    for slab, sums in enumerate(expected):
        assert found["pred"][0, slab].unique().tolist() == [(0, 1, 2, 4)[int(np.argmax(sums))]]
        whole, core = 4 - sums[0], sums[1] + sums[3]
        wanted = [round(255 * value / 4) for value in (whole, core, sums[3])]
        assert found["soft"][:, slab].amax((1, 2)).tolist() == wanted


def test_nearly_empty_bytes_are_not_taken_for_certainty(tmp_path: Path) -> None:
    """A highest value of 1 in bytes is a probability of 1 / 255."""
    regions = np.ones((*SHAPE, 3), np.uint8)
    member = FileMember("x", write(tmp_path / "a.nii.gz", regions).replace("a.nii", "{case}.nii"), predicts="regions")
    found = labelled(Ensemble([member], sequences=4), torch.zeros(4, *SHAPE))
    assert found["pred"].max() == 0
    assert found["soft"].unique().tolist() == [1]


def test_other_label_numbers(tmp_path: Path) -> None:
    """The Decathlon's 1, 2, 3 are oedema, necrosis, enhancing tumour."""
    label = np.zeros(SHAPE, np.uint8)
    label[0], label[1], label[2] = 1, 2, 3
    member = FileMember(
        "x",
        write(tmp_path / "a.nii.gz", label).replace("a.nii", "{case}.nii"),
        predicts="labels",
        label_order=["ED", "NCR", "ET"],
    )
    found = labelled(Ensemble([member], sequences=4), torch.zeros(4, *SHAPE))
    assert found["pred"][0, :, 0, 0].tolist() == [2, 1, 4, 0]
    assert found["disagreement"].max() == 0


def test_rules_of_the_annotation(tmp_path: Path) -> None:
    label = np.zeros((12, 12, 12), np.uint8)
    label[:6, :6, :6] = 2
    label[2, 2, 2:5] = 4
    label[10, 10, 10] = 2
    member = FileMember("x", write(tmp_path / "a.nii.gz", label).replace("a.nii", "{case}.nii"), predicts="labels")
    ensemble, sums = Ensemble([member], sequences=4), torch.zeros(4, 12, 12, 12)
    assert torch.equal(labelled(ensemble, sums)["pred"][0].as_tensor(), torch.from_numpy(label))
    cleaned = labelled(ensemble, sums, minimum_enhancing=4, fraction=0.1)["pred"][0]
    assert cleaned[2, 2, 2:5].tolist() == [1, 1, 1]
    assert cleaned[10, 10, 10] == 0
    assert labelled(ensemble, sums, minimum_enhancing=3)["pred"][0, 2, 2, 2] == 4


class Shift(nn.Module):
    """Each region is more probable where the first sequence, normalised, is higher: it depends on place and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        assert not any(size % 4 for size in scan.shape[2:])
        return scan[:, :1] + self.bias.view(1, 3, 1, 1, 1)


def test_member_pads_before_it_normalises_and_cuts_its_answer_to_the_scan(tmp_path: Path) -> None:
    scan = torch.zeros(1, 4, 6, 7, 5)
    scan[:, :, 1:5, 1:6, 1:4] = torch.rand(1, 4, 4, 5, 3) + 1
    torch.save(Shift().state_dict(), tmp_path / "shift.pt")
    member = NetworkMember(
        "shift",
        Shift(),
        weights=str(tmp_path / "shift.pt"),
        normalize=NormalizePositived("image"),
        inferer=FlipAverageInferer(),
        divisor=4,
    )
    with torch.no_grad():
        found = member(scan)
    normalised = NormalizePositived("image")({"image": scan[0]})["image"][0]
    regions = torch.stack([normalised + bias for bias in (0.5, 0.0, -0.5)]).sigmoid()
    expected = torch.stack([1 - regions[0], regions[1] - regions[2], regions[0] - regions[1], regions[2]])
    assert found.shape == (1, 4, 6, 7, 5)
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_damaged_and_unfit_weights_are_named(tmp_path: Path) -> None:
    good, bad = network(tmp_path, "good", [0.0, 0.0, 0.0]), network(tmp_path, "bad", [0.0, 0.0, 0.0])
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.pt: cannot be read"):
        Ensemble([good, bad], sequences=4).load()
    (tmp_path / "bad.pt").unlink()
    with pytest.raises(InputError, match=r"bad\.pt: there are no such weights"):
        Ensemble([good, bad], sequences=4).load()


def test_member_with_other_outputs_is_named(tmp_path: Path) -> None:
    members = [network(tmp_path, "four", [0.0, 0.0, 0.0, 0.0])]
    with pytest.raises(InputError, match=r"member four: must have 3 outputs \(WT, TC, ET\), has 4"):
        Ensemble(members, sequences=4).load()


def test_impossible_members_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="member x: must predict one of labels, regions, classes, got kidneys"):
        FileMember("x", "{case}", predicts="kidneys")
    with pytest.raises(InputError, match="member x: unknown class LV"):
        FileMember("x", "{case}", predicts="labels", label_order=["NCR", "LV"])
    with pytest.raises(InputError, match=r"members: must be one or more with different names, got \[\]"):
        Ensemble([], sequences=4)
    twice = [FileMember("x", "{case}", predicts="labels")] * 2
    with pytest.raises(InputError, match=r"different names, got \['x', 'x'\]"):
        Ensemble(twice, sequences=4)


@pytest.mark.parametrize(
    ("volume", "affine", "kind", "rule"),
    [
        (None, AFFINE, "labels", "prediction of member x is missing"),
        (np.zeros((4, 3, 6), np.uint8), AFFINE, "labels", r"shape \(4, 3, 6\) of member x does not fit .* 4 x 3 x 5"),
        (np.zeros((*SHAPE, 4), np.uint8), AFFINE, "regions", r"shape .* does not fit the scan's: 4 x 3 x 5 x 3"),
        (np.zeros((*SHAPE, 3), np.uint8), AFFINE, "classes", r"shape .* does not fit the scan's: 4 x 3 x 5 x 4"),
        (np.zeros(SHAPE, np.uint8), np.eye(4), "labels", "affine of member x differs"),
        (
            np.full((*SHAPE, 3), 200, np.float32),
            AFFINE,
            "regions",
            "probabilities of member x must lie between 0 and 1, found 200 to 200",
        ),
        (
            np.full(SHAPE, 5, np.uint8),
            AFFINE,
            "labels",
            r"label values .* must be among \[0, 1, 2, 3, 4\], found \[5.0\]",
        ),
    ],
)
def test_file_of_a_member_that_breaks_a_rule(
    volume: np.ndarray | None, affine: np.ndarray, kind: str, rule: str, tmp_path: Path
) -> None:
    if volume is not None:
        write(tmp_path / "a.nii.gz", volume, affine)
    case = {"case": "a", "image": write(tmp_path / "scan/a_t1.nii.gz", np.ones(SHAPE, np.int16))}
    ensemble = Ensemble([FileMember("x", str(tmp_path / "{case}.nii.gz"), predicts=kind)], sequences=4)
    with pytest.raises(InputError, match=f"case a: .*a.nii.gz: {rule}"):
        ensemble.check([case])
