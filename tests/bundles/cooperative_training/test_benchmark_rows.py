"""Workloads of the cardiac bundle: all ways agree, a foreign one with the reference's axes and classes too."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.benchmark import Row, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
BUNDLE = "cooperative_training_acdc_mri"
SCAN, PATCH = (64, 60, 3), (48, 48)

# Reads the state dict as the reference does, on (y, x) arrays with the classes LV, MYO, RV, through our network; the
# formulas are its own.
BASELINE = """
import random
import numpy as np, torch
from cooperative_training.networks import CooperativeNetwork
from torch.nn.functional import cross_entropy, mse_loss, pad

ORDER = torch.tensor([0, 3, 2, 1])

def turn(x):
    return x.transpose(2, 3)

def standard_step(state_dict, inputs, device):
    net = CooperativeNetwork()
    net.load_state_dict(state_dict)
    x, y = turn(inputs["image"]), ORDER[turn(inputs["label"])[:, 0].long()]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    def step():
        codes = net.encode((x + 0.05 * turn(torch.randn(inputs["image"].shape))).clamp(0, 1))
        logits = net.segmentation_decoder(codes[1])
        labels = torch.eye(4)[y].permute(0, 3, 1, 2)
        losses = {"seg": cross_entropy(logits, y), "image": mse_loss(net.image_decoder(codes[0]), x) / 2,
                  "gt_shape": cross_entropy(net.shape_decoder(net.shape_encoder(labels)), y),
                  "shape": cross_entropy(net.shape_decoder(net.shape_encoder((logits / 2).softmax(1))), y)}
        sum(losses.values()).backward()
        square = sum(p.grad.square().sum() for p in net.parameters())
        return {name: loss.detach() for name, loss in losses.items()} | {"gradient": square.sqrt()[None]}
    return step

def stack_inference(state_dict, inputs, device):
    net = CooperativeNetwork().eval()
    net.load_state_dict(state_dict)
    slices = turn(inputs["image"].movedim(-1, 0)[:, 0])
    return lambda: {"logits": turn(net(slices).detach()[:, ORDER]).movedim(0, -1)[None]}

def augmentation(state_dict, inputs, device):
    border = [(a - b) // 2 for a, b in zip(inputs["image"].shape[1:], inputs["patch_size"])]
    (x, y), (w, h) = border, inputs["patch_size"]
    return lambda: {f"twin_{key}": inputs[key][:, x:x + w, y:y + h] for key in ("image", "label")}
"""


@cache
def recipe(part: str = "benchmark") -> Any:
    return importlib.import_module(f"tools.per_bundle.{BUNDLE}.{part}")


def small_rows() -> list[Row]:
    """All rows but the start-up of a process, at sizes for a test."""
    made = recipe()
    return [
        made.step(CPU, (4, 64, 64), cooperative=True),
        made.step(CPU, (4, 64, 64), cooperative=False),
        made.stack_inference(CPU, (32, 48, 3)),
        made.whole_stack(CPU, SCAN, patch_size=PATCH),
        made.data_pipeline(SCAN, patch_size=PATCH),
        made.augmentation(SCAN, patch_size=PATCH),
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
    assert {row for row, name in reasons if name == "baseline"} == {
        "standard_step",
        "stack_inference",
        "augmentation",
    }
    assert {way: reason for way, reason in reasons.items() if reason} == {}


def test_the_cooperative_step_has_the_losses_of_training_masked_by_channel() -> None:
    outputs = small_row("cooperative_step").settings["plain"].prepare()()
    assert [name for name in outputs if name.startswith("hard")] == [
        "hard_seg",
        "hard_image",
        "hard_shape_of_image",
        "hard_shape",
    ]
    assert recipe("benchmark_inputs").cooperation(None, cooperative=True).image_masking.kinds == ("channel",)
    assert all(torch.isfinite(value).all() for value in outputs.values())


def test_an_epoch_is_both_versions_of_every_labelled_slice() -> None:
    """Twins are the slices as prepared; the others are random, but the same however the volume is read."""
    row = small_row("data_pipeline")
    epochs = {name: setting.prepare()() for name, setting in row.settings.items()}
    dataset = recipe("benchmark_inputs").cached(SCAN, patch_size=PATCH)
    for name, epoch in epochs.items():
        assert len(epoch["image"]) == len(dataset) > 2, name
        assert all(image.shape == (1, *PATCH) for image in epoch["image"])
        assert all(label.any() for label in epoch["twin_label"])
    assert not any(map(torch.equal, epochs["cached"]["image"], epochs["cached"]["twin_image"]))
    torch.testing.assert_close(epochs["cached"], epochs["plain"], rtol=0, atol=0)


def test_shares_of_a_whole_stack_are_those_of_its_label_map() -> None:
    share = small_row("whole_stack").settings["plain"].prepare()()["share"]
    assert share.sum().item() == pytest.approx(1)
    assert (share[1:] > 0).any()
