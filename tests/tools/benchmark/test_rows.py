"""Workloads that bundles register: light to build; the left atrium's agree with a foreign implementation."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import NAMES
from tools import REPO
from tools.benchmark import Row, cli
from tools.benchmark.parity import compare, snapshot

CPU = torch.device("cpu")

VNET = "vnet_atrial_mri"
SCAN, PATCH = (112, 96, 48), (64, 48, 32)
REGISTERED = [name for name in NAMES if (REPO / "tools/per_bundle" / name / "benchmark.py").is_file()]

# Knows the reference's names and axes, and the formulas of the method; the rest is another way to the same results.
BASELINE = """
import numpy as np, torch
from scipy.ndimage import distance_transform_edt as edt
from tools.convert import load_key_map
from vnet_atrial.networks import VNet

def network(state_dict, **options):
    net = VNet(**options)
    net.load_state_dict(load_key_map("vnet_atrial_mri", state=net.state_dict()).to_ours(state_dict))
    return net

def training_step(state_dict, inputs, device, **options):
    net = network(state_dict, **options)
    def step():
        p, g = net(inputs["image"]).sigmoid(), inputs["label"]
        loss = 1 - 2 * (p * g).sum() / (p.sum() + g.sum())
        loss.backward()
        return {"loss": loss.detach(), "gradient": net.encoder[0].expand.bias.grad}
    return step

def training_step_attention(state_dict, inputs, device):
    return training_step(state_dict, inputs, device, attention=True)

def patch_inference(state_dict, inputs, device):
    net = network(state_dict)
    return lambda: {"logits": net(inputs["image"]).detach()}

def whole_volume(state_dict, inputs, device):
    head = state_dict["out_transition.conv1.bias"] / -state_dict["out_transition.conv1.weight"].sum()
    return lambda: {"mask": (inputs["image"] > head.item()).astype(np.uint8)}

def level_set(state_dict, inputs, device):
    inside = inputs["label"] > 0
    return lambda: {"level_set": (edt(~inside) - np.maximum(edt(inside) - 1, 0)).astype(np.int16)}

def metrics(state_dict, inputs, device):
    a, b = inputs["prediction"] > 0, inputs["label"] > 0
    def score():
        both = (a & b).sum()
        far = [edt(~other, sampling=inputs["spacing"])[mask].max() for mask, other in ((a, b), (b, a))]
        return {"dice": 2 * both / (a.sum() + b.sum()), "iou": both / (a | b).sum(),
                "precision": both / a.sum(), "recall": both / b.sum(), "hd": max(far)}
    return score
"""


@cache
def recipe(part: str = "benchmark") -> Any:
    return importlib.import_module(f"tools.per_bundle.{VNET}.{part}")


def small_rows() -> list[Row]:
    """The rows of the left-atrium bundle, all but the start-up of a process, at sizes for a test."""
    made = recipe()
    return [
        made.training_step(CPU, (2, 16, 32, 16)),
        made.training_step(CPU, (2, 16, 32, 16), attention=True),
        made.patch_inference(CPU, (16, 32, 16)),
        made.whole_volume(CPU, SCAN, patch_size=PATCH),
        made.level_set((40, 30, 20)),
        made.loading(SCAN, patch_size=PATCH),
        made.preparation(CPU, SCAN, patch_size=PATCH),
        made.augmentation(CPU, SCAN, patch_size=PATCH),
        made.metrics((40, 30, 20)),
    ]


def outputs(name: str) -> Any:
    """What one unit of the plain setting of a small row gives."""
    (row,) = [row for row in small_rows() if row.name == name]
    return row.settings["plain"].prepare()()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("bundle", REGISTERED)
def test_names_are_unique_and_cover_the_stages_of_the_work(bundle: str, device: str) -> None:
    (rows,) = cli.collect(bundle, torch.device(device)).values()
    names = {row.name for row in rows}
    assert {"augmentation", "start_up"} <= names
    assert any("step" in name for name in names)
    assert any(name.startswith("whole_") for name in names)


@pytest.mark.parametrize("bundle", REGISTERED)
def test_building_rows_makes_no_inputs(bundle: str) -> None:
    inputs = importlib.import_module(f"tools.per_bundle.{bundle}.benchmark_inputs")
    caches = [made for made in vars(inputs).values() if hasattr(made, "cache_info")]
    before = [made.cache_info().misses for made in caches]
    cli.collect(bundle, CPU)
    assert [made.cache_info().misses for made in caches] == before
    assert caches


def test_every_way_of_doing_a_row_and_a_foreign_one_agree(tmp_path: Path) -> None:
    (tmp_path / "baseline.py").write_text(BASELINE)
    (rows,) = cli.attach({VNET: small_rows()}, tmp_path / "baseline.py", device=CPU).values()
    reasons, settings = {}, {}
    for row in rows:
        results = {name: snapshot(setting.prepare()()) for name, setting in row.settings.items()}
        settings[row.name] = set(results)
        for name, setting in row.settings.items():
            verdict = compare(results[name], results["plain"], atol=setting.atol, rtol=setting.rtol)
            reasons[row.name, name] = verdict.reason
    without = {"loading", "preparation", "augmentation"}
    assert {name for name, ways in settings.items() if "baseline" not in ways} == without
    assert {way: reason for way, reason in reasons.items() if reason} == {}


def test_whole_volume_finds_the_atrium_where_it_is() -> None:
    label = recipe("benchmark_inputs").scan(SCAN, patch_size=PATCH, noise=1)["label"]
    mask = outputs("whole_volume")["mask"]
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), label)


def test_loading_and_preparation_read_the_case_they_name() -> None:
    scan = recipe("benchmark_inputs").scan(SCAN, patch_size=PATCH, noise=60)
    np.testing.assert_array_equal(outputs("loading")["image"].numpy(), scan["image"])
    image, label = (outputs("preparation")[key].numpy() for key in ("image", "label"))
    assert image.shape == label.shape
    assert label.sum() == scan["label"].sum()
    assert image[label > 0].min() > image[label == 0].max()  # as drawn


@pytest.mark.parametrize("bundle", REGISTERED)
def test_weights_and_batches_are_the_same_in_every_process(bundle: str) -> None:
    inputs = importlib.import_module(f"tools.per_bundle.{bundle}.benchmark_inputs")
    size = {VNET: (1, 16, 16, 16)}.get(bundle, (1, 16, 16))
    first = inputs.network().state_dict(), inputs.batch(size)["image"]
    inputs.network.cache_clear()
    inputs.batch.cache_clear()
    torch.manual_seed(99)
    again = inputs.network().state_dict(), inputs.batch(size)["image"]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
