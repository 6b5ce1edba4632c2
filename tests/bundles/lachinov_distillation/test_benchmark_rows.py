"""Workloads of the distillation bundle: all ways agree, and a foreign one with formulas of its own."""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.utils import manual_seed

from tools.benchmark import Row, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")
BUNDLE = "lachinov_distillation_brats_mri"
FILES, SIZE, PATCH = (32, 38, 30), (32, 48, 32), (32, 32, 16)
COARSE = {"pixdim": [6.0, 6.0, 6.0]}
SAMPLES = {**COARSE, "size": [32, 48, 32], "patch_size": list(PATCH)}
ONCE: dict[str, Any] = {f"{member}::inferer::flips": [[]] for member in ("resunet", "unet", "cascaded::inferer")}
TINY = {**COARSE, **ONCE, "channels": [8, 8, 8, 8], "base": 1, "cascade_size": [64, 32, 32], "filters": [4, 4, 4]}

# Reads the state dict as the reference does; only the network is ours. The optimizer's first step is its formula.
BASELINE = """
import torch
from lachinov_distillation.networks import ResUNet
from tools.convert import load_key_map

def load(state_dict):
    net = ResUNet()
    names = load_key_map("lachinov_distillation_brats_mri", state=net.state_dict())
    net.load_state_dict(names.to_ours(state_dict))
    return net, sorted((theirs, ours) for ours, theirs in names.names.items())

def training_step(state_dict, inputs, device):
    net, names = load(state_dict)
    def step():
        p, g = 1 / (1 + (-net(inputs["image"])[0]).exp()), inputs["label"][0]
        dice = torch.stack([1 - (2 * (a * b).sum() + 2e-6) / ((a * a).sum() + b.sum() + 2e-6) for a, b in zip(p, g)])
        bce = -(g * (p + 1e-6).log() + (1 - g) * (1 + 1e-6 - p).log() / 100)
        loss = (dice.mean() + bce.mean()) / 2
        loss.backward()
        own, means = dict(net.named_parameters()), []
        for _, name in names:
            p = own[name].detach().double()
            slope = own[name].grad + 1e-6 * p
            means.append((p - inputs["learning_rate"] * slope / (slope.abs() + 1e-8)).mean())
        norm = torch.cat([p.grad.flatten() for p in own.values()]).norm()
        return {"loss": loss.detach(), "gradient": norm, "parameters": torch.stack(means)}
    return step

def whole_brain(state_dict, inputs, device):
    net, _ = load(state_dict)
    def segment():
        x = inputs["image"]
        with torch.no_grad():
            turned = [net(x), net(x.flip(2)).flip(2), net(x.flip(3)).flip(3), net(x.flip(2, 3)).flip(2, 3)]
        return {"probabilities": torch.stack([1 / (1 + (-y).exp()) for y in turned]).mean(0)}
    return segment
"""


@cache
def recipe(part: str = "benchmark") -> Any:
    return importlib.import_module(f"tools.per_bundle.{BUNDLE}.{part}")


def small_rows() -> list[Row]:
    """All rows but the start-up of a process, at sizes for a test."""
    made = recipe()
    return [
        made.training_step(CPU, PATCH),
        made.whole_brain(CPU, SIZE),
        made.data_pipeline(FILES, changes=SAMPLES),
        made.annotation(CPU, FILES, changes=TINY),
        made.augmentation(SIZE, patch=PATCH),
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
    assert {row for row, name in reasons if name == "baseline"} == {"training_step", "whole_brain"}
    assert {way: reason for way, reason in reasons.items() if reason} == {}


def test_rows_of_a_cpu() -> None:
    """What a foreign implementation gets has the reference's 93 tensors."""
    made = recipe().rows(CPU)
    names = ["training_step", "whole_brain", "data_pipeline", "annotation", "augmentation", "export", "start_up"]
    assert [row.name for row in made] == names
    assert len(made[0].state_dict()) == len(made[1].state_dict()) == 93


def test_a_step_trains_every_parameter_and_leaves_the_weights_alone() -> None:
    manual_seed(0)
    step, state = small_row("training_step").settings["plain"].prepare(), recipe("benchmark_inputs").reference_names()
    first, second = step(), step()
    assert len(first["parameters"]) == 86
    dead = ("decoder_convs.3.", "decoder_convs1x1.3.")
    before = torch.stack([value.double().mean() for key, value in sorted(state.items()) if not key.startswith(dead)])
    moved = (first["parameters"] - before).abs()
    assert 0 < moved.min() < moved.max() <= 1.001 * recipe().RATE
    assert second["loss"] != first["loss"]  # the second step starts from what the first left
    assert all(torch.equal(state[key], value) for key, value in recipe("benchmark_inputs").reference_names().items())


def test_a_scan_is_what_the_student_learns_from() -> None:
    scan = {key: value[0] for key, value in recipe("benchmark_inputs").batch(SIZE).items()}
    whole, core, enhancing = scan["label"]
    assert scan["image"].shape == (4, *SIZE)
    assert (whole >= core).all()
    assert (core >= enhancing).all()
    assert enhancing.max() > 0.7
    assert ((whole > 0) & (whole < 1)).any()
    rind, oedema, outside = enhancing > 0.5, whole - core > 0.5, scan["image"].amin(0) < -1
    bright, water = (torch.stack([channel[part].mean() for channel in scan["image"]]) for part in (rind, oedema))
    assert [int((bright - water).argmax()), int(water.argmax())] == [1, 3]  # contrast agent in T1ce, water in FLAIR
    assert outside.float().mean() > 0.3


def test_an_epoch_has_a_patch_of_each_scan_and_another_one_the_next_time() -> None:
    epochs = {}
    for cached in (False, True):
        manual_seed(0)
        loader = recipe("benchmark_inputs").loader(FILES, changes=SAMPLES, cached=cached)
        epochs[cached] = [list(loader), list(loader)]
        assert loader.dataset.__class__.__name__ == ("CacheDataset" if cached else "Dataset")
        assert [len(epoch) for epoch in epochs[cached]] == [2, 2]
        first, again = (epoch[0]["image"] for epoch in epochs[cached])
        assert first.shape == (1, 4, *PATCH)
        assert not torch.equal(first, again)
    for anew, kept in zip(epochs[False][0], epochs[True][0], strict=True):
        for key in ("image", "label"):
            torch.testing.assert_close(anew[key], kept[key], rtol=0, atol=0)


def test_samples_differ_but_not_between_preparations() -> None:
    settings = small_row("augmentation").settings["plain"]
    first, second, again = (settings.prepare() for _ in range(3))
    sample, same = first(), second()
    assert sample["image"].shape == (4, *PATCH)
    assert sample["label"].shape == (3, *PATCH)
    torch.testing.assert_close(sample, same, rtol=0, atol=0)
    assert not torch.equal(again()["image"], again()["image"])


def test_annotation_leaves_a_map_for_every_scan() -> None:
    cases = 3
    evaluator, run = recipe("benchmark_inputs").annotator(FILES, cases=cases, device=CPU, changes=TINY)
    assert [member.name for member in evaluator.network.members] == ["resunet", "cascaded", "unet"]
    for _ in range(2):  # a second time, too, as it is timed
        evaluator.run()
        assert evaluator.state.iteration == cases
        assert all(run.file(case, kind).is_file() for case in run.cases for kind in ("label", "disagreement"))
        for case in run.cases:
            run.file(case, "label").unlink()
    assert len(json.loads((run.folder / "datalist.json").read_text())["training"]) == cases


def test_shares_of_an_annotation_are_those_of_its_label_maps() -> None:
    found = small_row("annotation").settings["plain"].prepare()()
    assert [sum(share) for share in found["share"]] == pytest.approx([1, 1])
    assert found["share"][0] != found["share"][1]
    assert all(0 < value < 2 / 3 for value in found["disagreement"])
