"""Workloads of the brain-tumour bundle: all ways agree, and a foreign one with formulas and geometry of its own."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tools.benchmark import Row, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
BUNDLE = "hadnet_brats_mri"
SCAN, SIZE = (44, 56, 35), (32, 48, 32)

# Reads the state dict as the reference does and judges in two calls, nothing frozen; only the networks are ours.
BASELINE = """
import numpy as np, torch
from hadnet.networks import Discriminator, SegmentationNetwork
from tools.convert import load_key_map

WEIGHTS = torch.tensor([1, 59.4507, 23.3190, 71.8481])

def load(net, state_dict, role):
    state = {key.removeprefix(f"{role}."): value for key, value in state_dict.items() if key.startswith(f"{role}.")}
    net.load_state_dict(load_key_map("hadnet_brats_mri", role, state=net.state_dict()).to_ours(state))
    return net

def entropy(logits, label):
    truth = torch.eye(4)[label[0, 0].long()].movedim(-1, 0)
    chances = logits.exp()[0] / logits.exp().sum(1)
    weights = (truth * WEIGHTS[:, None, None, None]).sum(0)
    return -(weights * (truth * chances).sum(0).log()).sum() / weights.sum()

def norm(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()]).norm()

def adversarial_step(state_dict, inputs, device):
    student = load(SegmentationNetwork(3, filters=8, dropout=0), state_dict, "student")
    teacher = load(SegmentationNetwork(4, filters=8, dropout=0), state_dict, "teacher")
    judge = load(Discriminator(7, filters=8), state_dict, "discriminator")
    image, label = inputs["image"], inputs["label"]
    seen = torch.stack([image[:, 0], image[:, 2], image[:, 3]], 1)
    def step():
        logits, pairs = student.features(seen)
        verdict = judge(logits, seen, pairs=pairs)
        segmentation, adversarial = entropy(logits, label), (verdict**2 - 2 * verdict + 1).mean()
        (segmentation + adversarial / 5).backward()
        judge.zero_grad()
        with torch.no_grad():
            judged = [net.features(x) for net, x in ((teacher, image), (student, seen))]
        real, fake = (judge(logits, seen, pairs=pairs) for logits, pairs in judged)
        loss = ((1 - real) ** 2).mean() + (fake * fake).mean()
        loss.backward()
        return {"loss": (segmentation + adversarial / 5).detach(), "segmentation": segmentation.detach(),
                "adversarial": adversarial.detach(), "discriminator": loss.detach(),
                "real_accuracy": 1 - (real < 0.5).double().mean(), "fake_accuracy": 1 - (fake > 0.5).double().mean(),
                "student_gradient": norm(student), "discriminator_gradient": norm(judge)}
    return step

def pretraining_step(state_dict, inputs, device):
    student = load(SegmentationNetwork(3, filters=8, dropout=0), state_dict, "student")
    def step():
        loss = entropy(student(inputs["image"]), inputs["label"])
        loss.backward()
        return {"loss": loss.detach(), "student_gradient": norm(student)}
    return step

def whole_scan(state_dict, inputs, device):
    student = load(SegmentationNetwork(3, filters=8), state_dict, "student").eval()
    def segment():
        image = np.flip(inputs["image"].T, 1).astype(float)  # z to the head, y to the front, x to the left
        where = np.argwhere(image.all(-1))
        low, high = where.min(0), where.max(0) + 1
        box = tuple(map(slice, low, high))
        before = (np.array(inputs["size"]) - high + low) // 2
        inner = tuple(map(slice, before, before + high - low))
        padded = np.zeros((3, *inputs["size"]), np.float32)
        for c, target in enumerate(padded):
            inside = image[..., c][image.all(-1)]
            scores = np.minimum((image[..., c][box] - inside.mean()) / inside.std(), 3)
            target[inner] = (scores - scores.min()) / (3 - scores.min())
        found = np.zeros(image.shape[:3], int)
        found[box] = student(torch.from_numpy(padded)[None]).argmax(1)[0].numpy()[inner]
        found = np.flip(found, 1).T.copy()
        classes = torch.from_numpy(np.stack([found == c for c in range(4)])).float()
        return {"share": torch.nn.functional.adaptive_avg_pool3d(classes, 4)}
    return segment

def uncertainty(state_dict, inputs, device):
    student = load(SegmentationNetwork(3, filters=8), state_dict, "student").train()  # all but dropout is indifferent
    torch.manual_seed(0)
    def maps():
        with torch.no_grad():
            passes = torch.cat([student(inputs["image"]).softmax(1) for _ in range(inputs["samples"])])
        mean = passes.double().mean(0)
        regions = {"ET": mean[3], "TC": mean[1] + mean[3], "WT": 1 - mean[0]}
        return {name: -100 * (p * p.log2() + (1 - p) * (1 - p).log2())[None] for name, p in regions.items()}
    return maps
"""


@cache
def recipe(part: str = "benchmark") -> Any:
    return importlib.import_module(f"tools.per_bundle.{BUNDLE}.{part}")


def small_rows() -> list[Row]:
    """All rows but the start-up of a process, at sizes for a test."""
    made = recipe()
    return [
        made.adversarial_step(CPU, (32, 48, 48), filters=8),
        made.pretraining_step(CPU, (32, 32, 48), filters=8),
        made.whole_scan(CPU, SCAN, size=SIZE, filters=8),
        made.uncertainty(CPU, (32, 32, 48), filters=8),
        made.data_pipeline(SCAN, spacing=(5, 5, 5), pixdim=(5, 5, 5), size=SIZE),
        made.augmentation(CPU, SIZE),
    ]


def small_row(name: str) -> Row:
    (row,) = [row for row in small_rows() if row.name == name]
    return row


def test_every_way_of_doing_a_row_and_a_foreign_one_agree(tmp_path: Path) -> None:
    (tmp_path / "baseline.py").write_text(BASELINE)
    (rows,) = cli.attach({BUNDLE: small_rows()}, tmp_path / "baseline.py", device=CPU).values()
    reasons = {}
    for row in rows:
        results = {name: snapshot(setting.prepare()()) for name, setting in row.settings.items()}
        for name, setting in row.settings.items():
            reasons[row.name, name] = compare(
                results[name], results["plain"], atol=setting.atol, rtol=setting.rtol
            ).reason
    foreign = {"adversarial_step", "pretraining_step", "whole_scan", "uncertainty"}
    assert {row for row, name in reasons if name == "baseline"} == foreign
    assert {way: reason for way, reason in reasons.items() if reason} == {}


@pytest.mark.parametrize("overlays", [[], ["pretrain"]])
def test_a_step_trains_every_network_but_the_teacher(overlays: list[str]) -> None:
    """The discriminator, too, which otherwise waits while it is good."""
    trainer, networks = recipe("benchmark_inputs").trainer(
        (32, 32, 32), filters=8, device=CPU, amp=False, overlays=overlays
    )
    before = {role: made.head.weight.detach().clone() for role, made in networks.items()}
    trainer.run()
    changed = {role for role, made in networks.items() if not torch.equal(made.head.weight, before[role])}
    assert changed == networks.keys() - {"teacher"}
    assert len(networks) == (1 if overlays else 3)
    assert overlays or trainer.threshold == 1


def test_an_epoch_has_the_scans_and_labels_as_the_configs_prepare_them() -> None:
    batches = {
        cached: list(
            recipe("benchmark_inputs").loader(SCAN, spacing=(5, 5, 5), pixdim=(5, 5, 5), size=SIZE, cached=cached)
        )
        for cached in (False, True)
    }
    assert [len(found) for found in batches.values()] == [2, 2]
    for anew, kept in zip(*batches.values(), strict=True):
        assert kept["image"].shape == (1, 4, *SIZE)
        assert kept["image"].max() <= 1
        assert kept["label"].unique().tolist() == [0, 1, 2, 3]
        for key in ("image", "label"):
            torch.testing.assert_close(anew[key], kept[key], rtol=0, atol=0)


def test_shares_of_a_whole_scan_are_those_of_its_label_map_part_by_part() -> None:
    share = small_row("whole_scan").settings["plain"].prepare()()["share"]
    np.testing.assert_allclose(share.sum(0), 1, rtol=1e-6)
    assert (share[1:].amax((1, 2, 3)) > 0).all()
    assert not torch.equal(share, share.flip(1))


def test_passes_of_uncertainty_have_dropout() -> None:
    maps = small_row("uncertainty").settings["plain"].prepare()
    first, second = maps(), maps()
    assert first.keys() == {"ET", "TC", "WT"}
    assert not torch.equal(first["ET"], second["ET"])
    assert all(values.min() >= 0 and values.max() == pytest.approx(100, abs=5) for values in first.values())
