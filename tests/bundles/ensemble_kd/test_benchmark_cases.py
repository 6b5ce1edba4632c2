"""Benchmark cases of the kidney bundle agree with formulas of their own."""

from pathlib import Path

import pytest
import torch
from ignite.utils import manual_seed

from ensemble_kd.sampling import PatchBatches
from tests.support.benchmark import CPU, disagreements, module, outputs, with_baseline
from tools.benchmark import BenchmarkCase

BUNDLE = "ensemble_kd_kits_ct"
VOLUME, SCAN, TILE, SHIFTS = (14, 12, 9), (60, 58, 57), 8, 3
STEP = (2, 3, 3)

# Reads the state dict as the reference does; only the networks are ours. The optimizer's first step is its formula,
# slices and tiles go through a network one by one, and windows are looked at one by one.
BASELINE = """
from itertools import product
import numpy as np, torch
from ensemble_kd.networks import DilatedCNN, ResNet, UNet
from tools.convert import load_key_map

KINDS = {"dilated35": ("dilated_cnn", lambda: DilatedCNN(3, 35, dropout=0)),
         "dilated131": ("dilated_cnn_131", lambda: DilatedCNN(2, 131, dropout=0)),
         "resnet3d": ("resnet", lambda: ResNet(3, 3, dropout=0)), "unet3d": ("unet", lambda: UNet(3, 3))}

def load(kind, state_dict):
    role, make = KINDS[kind]
    net = make()
    names = load_key_map("ensemble_kd_kits_ct", role, state=net.state_dict())
    net.load_state_dict(names.to_ours(state_dict))
    return net, {theirs: ours for ours, theirs in names.names.items()}

def training_step_dilated131(state_dict, inputs, device):
    net, names = load("dilated131", state_dict)
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

def slices(net, volume):
    found = 0
    for axis in range(3):
        answers = []
        for piece in volume.unbind(axis):
            h, w = piece.shape
            padded = torch.nn.functional.pad(piece, (17, 17, 17, 17))
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
def student(state_dict, inputs, device):
    net, _ = load("dilated35", state_dict)
    found = slices(net.eval(), inputs["image"][0, 0])
    return lambda: {"probabilities": found[None]}

@torch.no_grad()
def ensemble(state_dict, inputs, device):
    maps, image = [], inputs["image"][0, 0]
    for key, kind in {"dilated": "dilated35", "resnet": "resnet3d", "unet": "unet3d"}.items():
        part = {name[len(key) + 1:]: value for name, value in state_dict.items() if name.startswith(key + ".")}
        net = load(kind, part)[0].eval()
        maps.append(slices(net, image) if key == "dilated" else
                    tiles(net, image, inputs["tile"], inputs["shifts"]))
    maps = torch.stack(maps)
    return lambda: {"mean": maps.mean(0)[None], "spread": maps.std(0, correction=0)[None]}

def sampler(state_dict, inputs, device):
    edge, margin, cases = inputs["window"], inputs["margin"], inputs["cases"]
    kinds = [c for c in range(inputs["classes"]) if inputs["ratios"][c]]
    counts, first = dict.fromkeys(kinds, 0), []
    for number, axis in product(range(len(cases)), inputs["axes"]):
        label = cases[number]["label"][0]
        seen = label.movedim(axis, 0).unfold(1, edge, 1).unfold(2, edge, 1)
        for c in kinds:
            fits = (seen == c).any(-1).any(-1)
            fits = fits & (seen > 0).any(-1).any(-1) if c == 0 else fits
            counts[c] += int(fits.sum())
            if (number, axis, c) == (0, 0, 1):
                first = torch.nonzero(fits).tolist()
    d, y, x = first[len(first) // 2]
    padded = torch.nn.functional.pad(cases[0]["image"], (margin,) * 4)
    patch = padded[:, d, y:y + edge + 2 * margin, x:x + edge + 2 * margin]
    size = inputs["batch_size"]
    known = {"windows": torch.tensor(list(counts.values())), "patch": patch, "accepted": torch.ones(size)}
    return lambda: known
"""


def small_cases() -> dict[str, BenchmarkCase]:
    """All cases but the start-up of a process, at sizes for a test."""
    made = module(BUNDLE)
    return {
        case.name: case
        for case in (
            made.training_step_dilated131(CPU, STEP),
            made.student(CPU, VOLUME),
            made.ensemble(CPU, VOLUME, tile=TILE, shifts=SHIFTS),
            made.sampler(SCAN),
        )
    }


def test_a_foreign_implementation_agrees(tmp_path: Path) -> None:
    """What it gets has as many tensors as the reference, without heads of deep supervision."""
    cases = with_baseline(BUNDLE, small_cases().values(), BASELINE, tmp_path)
    assert all("baseline" in case.variants for case in cases)
    assert disagreements(cases) == {}
    assert [len(case.state_dict()) for case in cases] == [32, 28, 28 + 123 + 106, 0]


def test_a_step_trains_every_weight_and_leaves_the_shared_ones_alone() -> None:
    manual_seed(0)
    case = small_cases()["training_step_dilated131"]
    step, before = case.variants["eager"].prepare(), {name: value.clone() for name, value in case.state_dict().items()}
    first, second = step(), step()
    means = torch.stack([before[name].double().mean() for name in sorted(before) if name.endswith("weight")])
    moved = (first["parameters"] - means).abs()
    assert 0 < moved.min() < moved.max() <= 1.001 * module(BUNDLE).RATE
    assert second["loss"] != first["loss"]  # the second step starts from what the first left
    assert all(torch.equal(before[name], value) for name, value in case.state_dict().items())


def test_a_batch_is_what_the_network_learns_from() -> None:
    inputs = small_cases()["training_step_dilated131"].inputs()
    assert list(inputs["image"].shape) == [2, 1, 3 + 2 * 65, 3 + 2 * 65]
    assert list(inputs["label"].shape) == [2, 1, 3, 3]
    assert list(inputs["soft"].shape) == [2, 2, 3, 3]
    torch.testing.assert_close(inputs["soft"].sum(1), torch.ones(STEP), rtol=0, atol=1e-6)
    assert ((inputs["soft"] > 0.01) & (inputs["soft"] < 0.99)).any()
    assert 0 < inputs["label"].max() < 2


def test_a_scan_has_both_classes_where_its_soft_labels_are_high() -> None:
    draw = module(BUNDLE, "benchmark_inputs").scan
    scan, merged, other = draw(SCAN), draw(SCAN, 2), draw(SCAN, number=1)
    assert scan["label"].unique().tolist() == [0, 1, 2]
    assert torch.equal(merged["label"], (scan["label"] > 0).to(scan["label"].dtype))
    assert not torch.equal(other["label"], scan["label"])
    best = scan["soft"].argmax(0)
    assert (best == scan["label"][0]).float().mean() > 0.98
    kidney, outside = (scan["image"][scan["label"] == value].median() for value in (1, 0))
    assert kidney > 150 > outside


def test_probabilities_are_not_the_same_everywhere() -> None:
    """Else the agreement of two implementations would say nothing."""
    found = outputs(small_cases()["student"])["probabilities"]
    assert found.std((2, 3, 4)).min() > 20 * small_cases()["student"].rtol
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    assert outputs(small_cases()["ensemble"])["spread"].mean() > 0.01


def test_every_batch_is_another_but_not_between_preparations() -> None:
    first, again = (module(BUNDLE, "benchmark_inputs").sampler("dilated131", SCAN, batch_size=4) for _ in range(2))
    torch.testing.assert_close(first[0], again[0], rtol=0, atol=0)
    assert not torch.equal(first[0]["image"], first[1]["image"])
    assert not torch.equal(first.data[0]["image"], first.data[1]["image"])
    assert (first.rotation, first.criterion) == (0, "entire-sample-area")


def test_a_patch_without_an_organ_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, original = small_cases()["sampler"].variants["eager"].prepare(), PatchBatches.__getitem__

    def corrupted(self: PatchBatches, index: int) -> dict[str, torch.Tensor]:
        batch = original(self, index)
        batch["label"][0] = 0
        return batch

    assert draw()["accepted"].all()
    monkeypatch.setattr(PatchBatches, "__getitem__", corrupted)
    assert draw()["accepted"].tolist() == [False] + [True] * (module(BUNDLE).PATCHES - 1)
