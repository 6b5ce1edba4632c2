"""Workloads of the kidney bundle: all ways agree, and a foreign one with formulas of its own."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.utils import manual_seed

from ensemble_kd.sampling import PatchBatches
from tools.benchmark import Row, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
BUNDLE = "ensemble_kd_kits_ct"
VOLUME, SCAN, TILE, SHIFTS = (14, 12, 9), (60, 58, 57), 8, 3
STEPS = {
    "dilated35": (3, 11, 11),
    "dilated131": (2, 3, 3),
    "resnet2d": (2, 16, 16),
    "unet2d": (2, 16, 16),
    "resnet3d": (2, 8, 8, 8),
    "unet3d": (2, 16, 16, 16),
}

# Reads the state dict as the reference does; only the networks are ours. The optimizer's first step is its formula,
# slices and tiles go through a network one by one, and windows are looked at one by one.
BASELINE = """
from itertools import product
import numpy as np, torch
from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from tools.convert import load_key_map

KINDS = {"dilated35": ("dilated_cnn", lambda: DilatedCNN(3, 35, dropout=0)),
         "dilated131": ("dilated_cnn_131", lambda: DilatedCNN(2, 131, dropout=0)),
         "resnet2d": ("resnet_2d", lambda: ResNet(2, 3, dropout=0)), "unet2d": ("unet_2d", lambda: UNet(2, 3)),
         "resnet3d": ("resnet", lambda: ResNet(3, 3, dropout=0)), "unet3d": ("unet", lambda: UNet(3, 3))}

def load(kind, state_dict):
    role, make = KINDS[kind]
    net = make()
    names = load_key_map("ensemble_kd_kits_ct", role, state=net.state_dict())
    net.load_state_dict(names.to_ours(state_dict))
    return net, {theirs: ours for ours, theirs in names.names.items()}

def stepping(kind, state_dict, inputs, device):
    net, names = load(kind, state_dict)
    def step():
        z, q = net(inputs["image"]), inputs["soft"]
        p = z.exp() / z.exp().sum(1, keepdim=True)
        true = p.gather(1, inputs["label"])
        loss = sum((p[:, c] - q[:, c]).pow(2).mean() for c in range(p.shape[1])) - true.log().mean() / 10
        loss.backward()
        own, means = dict(net.named_parameters()), []
        for name in sorted(name for name in names if name.endswith(".weight")):
            slope = own[names[name]].grad
            means.append((own[names[name]].double() - inputs["learning_rate"] * slope / (slope.abs() + 1e-8)).mean())
        norm = torch.cat([p.grad.flatten() for p in own.values()]).norm()
        return {"loss": loss.detach(), "gradient": norm, "parameters": torch.stack(means).detach()}
    return step

def slices(net, volume, margin, divisor):
    found = 0
    for axis in range(3):
        answers = []
        for piece in volume.unbind(axis):
            h, w = piece.shape
            padded = torch.zeros(h + -h % divisor + 2 * margin, w + -w % divisor + 2 * margin)
            padded[margin:margin + h, margin:margin + w] = piece
            answers.append(net(padded[None, None])[0, :, :h, :w].softmax(0))
        found = found + torch.stack(answers, axis + 1) / 3
    return found

def tiles(net, volume, tile, shifts):
    size = volume.shape
    padded = torch.zeros([n + 2 * tile for n in size])
    padded[tuple(map(slice, size))] = volume
    found, visits = torch.zeros(3, *padded.shape), torch.zeros(padded.shape)
    for shift in range(shifts):
        for corner in product(*(range(shift, n, tile) for n in size)):
            box = tuple(slice(first, first + tile) for first in corner)
            found[(slice(None), *box)] += net(padded[box][None, None])[0].softmax(0)
            visits[box] += 1
    return (found / visits)[(slice(None), *map(slice, size))]

@torch.no_grad()
def segmenting(kind, state_dict, inputs, device):
    net, _ = load(kind, state_dict)
    margin = {"dilated35": 17, "dilated131": 65}.get(kind, 0)
    found = slices(net.eval(), inputs["image"][0, 0], margin, 1 if margin else 8)
    return lambda: {"probabilities": found[None]}

@torch.no_grad()
def ensemble(state_dict, inputs, device):
    maps, image = [], inputs["image"][0, 0]
    for key, kind in {"dilated": "dilated35", "resnet": "resnet3d", "unet": "unet3d"}.items():
        part = {name[len(key) + 1:]: value for name, value in state_dict.items() if name.startswith(key + ".")}
        net = load(kind, part)[0].eval()
        maps.append(slices(net, image, 17, 1) if key == "dilated" else
                    tiles(net, image, inputs["tile"], inputs["shifts"]))
    maps = torch.stack(maps)
    return lambda: {"mean": maps.mean(0)[None], "spread": maps.std(0, correction=0)[None]}

def sampling(state_dict, inputs, device):
    edge, margin, cases = inputs["window"], inputs["margin"], inputs["cases"]
    kinds = [c for c in range(inputs["classes"]) if inputs["ratios"][c]]
    counts, first = dict.fromkeys(kinds, 0), []
    for number, axis in product(range(len(cases)), inputs["axes"]):
        label = cases[number]["label"][0]
        seen = label.movedim(axis, 0).unfold(1, edge, 1).unfold(2, edge, 1)
        for c in kinds:
            centre = seen[..., edge // 2, edge // 2] == c
            fits = centre if inputs["criterion"] == "patch-center-voxel" else (seen == c).any(-1).any(-1)
            fits = fits & (seen > 0).any(-1).any(-1) if c == 0 else fits
            counts[c] += int(fits.sum())
            if (number, axis, c) == (0, 0, 1):
                first = torch.nonzero(fits).tolist()
    d, y, x = first[len(first) // 2]
    padded = torch.nn.functional.pad(cases[0]["image"], (margin,) * 4)
    patch = padded[:, d, y:y + edge + 2 * margin, x:x + edge + 2 * margin]
    size = inputs["batch_size"]
    known = {"windows": torch.tensor(list(counts.values())), "patch": patch, "accepted": torch.ones(size)}
    return lambda: known | ({"total": torch.ones(size, edge, edge)} if "soft" in cases[0] else {})

for kind in KINDS:
    globals()[f"training_step_{kind}"] = lambda *given, kind=kind: stepping(kind, *given)
    globals()[f"whole_volume_{kind}"] = lambda *given, kind=kind: segmenting(kind, *given)
windows_centre = windows_area = augmentation = sampling
"""


@cache
def recipe(part: str = "benchmark") -> Any:
    return importlib.import_module(f"tools.per_bundle.{BUNDLE}.{part}")


def small_rows() -> list[Row]:
    """All rows but the start-up of a process, at sizes for a test."""
    made = recipe()
    return [
        *(made.training_step(CPU, member, size=size) for member, size in STEPS.items()),
        *(made.whole_volume(CPU, member, size=VOLUME) for member in ("dilated35", "dilated131", "unet2d")),
        made.ensemble(CPU, VOLUME, tile=TILE, shifts=SHIFTS),
        made.windows("windows_centre", "dilated35", size=SCAN),
        made.windows("windows_area", "dilated131", size=SCAN),
        made.augmentation(SCAN),
    ]


def small_row(name: str) -> Row:
    (row,) = [row for row in small_rows() if row.name == name]
    return row


def test_every_way_of_doing_a_row_and_a_foreign_one_agree(tmp_path: Path) -> None:
    (tmp_path / "baseline.py").write_text(BASELINE)
    (rows,) = cli.attach({BUNDLE: small_rows()}, tmp_path / "baseline.py", device=CPU).values()
    reasons = {}
    for row in rows:
        results = {}
        for name, setting in row.settings.items():
            manual_seed(0)
            results[name] = snapshot(setting.prepare()())
            reasons[row.name, name] = compare(
                results[name], results["plain"], atol=setting.atol, rtol=setting.rtol
            ).reason
    assert {row for row, name in reasons if name == "baseline"} == {row.name for row in rows}
    assert {way for way in reasons if way[1] not in ("plain", "baseline")} == {("augmentation", "spline")}
    assert {way: reason for way, reason in reasons.items() if reason} == {}


def test_rows_of_a_cpu() -> None:
    """What a foreign implementation gets has as many tensors as the reference, without heads of deep supervision."""
    made = {row.name: row for row in recipe().rows(CPU)}
    counts = {name: len(row.state_dict()) for name, row in made.items()}
    assert counts == {
        "training_step_dilated35": 28,
        "training_step_dilated131": 32,
        "training_step_resnet2d": 123,
        "training_step_unet2d": 106,
        "training_step_resnet3d": 123,
        "training_step_unet3d": 106,
        "whole_volume_dilated35": 28,
        "whole_volume_dilated131": 32,
        "whole_volume_unet2d": 106,
        "whole_volume_dilated35_large": 28,
        "whole_volume_dilated131_large": 32,
        "student": 28,
        "ensemble": 28 + 123 + 106,
        "windows_centre": 0,
        "windows_area": 0,
        "augmentation": 0,
        "start_up": 0,
        "export": 0,
    }


@pytest.mark.parametrize("member", STEPS)
def test_a_step_trains_every_weight_and_leaves_the_shared_ones_alone(member: str) -> None:
    manual_seed(0)
    step = small_row(f"training_step_{member}").settings["plain"].prepare()
    before = {name: value.clone() for name, value in recipe().given.reference_names(member).items()}
    first, second = step(), step()
    means = torch.stack([before[name].double().mean() for name in sorted(before) if name.endswith("weight")])
    moved = (first["parameters"] - means).abs()
    assert 0 < moved.min() < moved.max() <= 1.001 * recipe().RATE
    assert second["loss"] != first["loss"]  # the second step starts from what the first left
    assert all(torch.equal(before[name], value) for name, value in recipe().given.reference_names(member).items())


@pytest.mark.parametrize(("member", "size"), STEPS.items())
def test_a_batch_is_what_the_network_learns_from(member: str, size: tuple[int, ...]) -> None:
    inputs, about = small_row(f"training_step_{member}").inputs(), recipe().given.MEMBERS[member]
    edges = [edge + 2 * about.margin for edge in size[1:]]
    assert list(inputs["image"].shape) == [size[0], 1, *edges]
    assert list(inputs["label"].shape) == [size[0], 1, *size[1:]]
    assert list(inputs["soft"].shape) == [size[0], about.classes, *size[1:]]
    torch.testing.assert_close(inputs["soft"].sum(1), torch.ones(size), rtol=0, atol=1e-6)
    assert ((inputs["soft"] > 0.01) & (inputs["soft"] < 0.99)).any()
    assert 0 < inputs["label"].max() < about.classes


def test_a_scan_has_both_classes_where_its_soft_labels_are_high() -> None:
    draw = recipe().given.scan
    scan, merged, other = draw(SCAN), draw(SCAN, 2), draw(SCAN, number=1)
    assert scan["label"].unique().tolist() == [0, 1, 2]
    assert torch.equal(merged["label"], (scan["label"] > 0).to(scan["label"].dtype))
    assert not torch.equal(other["label"], scan["label"])
    best = scan["soft"].argmax(0)
    assert (best == scan["label"][0]).float().mean() > 0.98
    kidney, outside = (scan["image"][scan["label"] == value].median() for value in (1, 0))
    assert kidney > 150 > outside


@pytest.mark.parametrize("name", ["whole_volume_dilated35", "whole_volume_dilated131", "whole_volume_unet2d"])
def test_probabilities_are_not_the_same_everywhere(name: str) -> None:
    """Else the agreement of two ways would say nothing."""
    found = small_row(name).settings["plain"].prepare()()["probabilities"]
    assert found.std((2, 3, 4)).min() > 20 * small_row(name).rtol
    assert found.max() < 1
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


def test_the_ensemble_has_three_members_that_disagree() -> None:
    made = recipe().given.ensemble(CPU, tile=TILE, shifts=SHIFTS)
    assert [member.name for member in made.members] == ["dilated", "resnet", "unet"]
    spread = small_row("ensemble").settings["plain"].prepare()()["spread"]
    assert spread.mean() > 0.01


@pytest.mark.parametrize("name", ["windows_centre", "windows_area", "augmentation"])
def test_every_batch_is_another_but_not_between_preparations(name: str) -> None:
    changes = {"soft": True} if name == "augmentation" else {"rotation": 0.0}
    member = "dilated131" if name == "windows_area" else "dilated35"
    first, again = (recipe().given.sampler(member, SCAN, batch_size=4, **changes) for _ in range(2))
    torch.testing.assert_close(first[0], again[0], rtol=0, atol=0)
    assert not torch.equal(first[0]["image"], first[1]["image"])
    assert not torch.equal(first.data[0]["image"], first.data[1]["image"])
    assert ("soft" in first[0]) == (name == "augmentation")
    assert (first.rotation > 0) == (name == "augmentation")
    assert first.criterion == ("entire-sample-area" if name == "windows_area" else "patch-center-voxel")


@pytest.mark.parametrize("name", ["windows_centre", "windows_area", "augmentation"])
def test_a_patch_without_an_organ_is_not_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, original = small_row(name).settings["plain"].prepare(), PatchBatches.__getitem__

    def spoilt(self: PatchBatches, index: int) -> dict[str, torch.Tensor]:
        batch = original(self, index)
        batch["label"][0] = 0
        if name != "windows_area":  # all but the centre does not count there
            batch["label"][1, :, 0] = 1
            batch["label"][1, 0, 5, 5] = 0
        return batch

    assert draw()["accepted"].all()
    monkeypatch.setattr(PatchBatches, "__getitem__", spoilt)
    bad = 1 if name == "windows_area" else 2
    assert draw()["accepted"].tolist() == [False] * bad + [True] * (recipe().PATCHES - bad)
