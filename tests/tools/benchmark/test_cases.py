"""Benchmark cases that bundles register: light to build; the left atrium's agree with a foreign implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import each_bundle
from tests.support.benchmark import CPU, disagreements, module, outputs, with_baseline
from tools.benchmark import BenchmarkCase, cli

VNET = "vnet_atrial_mri"
SCAN, PATCH = (112, 96, 48), (64, 48, 32)

# Knows the reference's names and axes, and the formulas of the method; the rest is another way to the same results.
BASELINE = """
import numpy as np, torch
from scipy.ndimage import distance_transform_edt as edt
from tools.convert import load_key_map
from vnet_atrial.networks import VNet

def network(state_dict):
    net = VNet()
    net.load_state_dict(load_key_map("vnet_atrial_mri", state=net.state_dict()).to_ours(state_dict))
    return net

def training_step(state_dict, inputs, device):
    net = network(state_dict)
    def step():
        p, g = net(inputs["image"]).sigmoid(), inputs["label"]
        loss = 1 - 2 * (p * g).sum() / (p.sum() + g.sum())
        loss.backward()
        return {"loss": loss.detach(), "gradient": net.encoder[0].expand.bias.grad}
    return step

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


def small_cases() -> dict[str, BenchmarkCase]:
    """The cases of the left-atrium bundle, all but the start-up of a process, at sizes for a test."""
    made = module(VNET)
    return {
        case.name: case
        for case in (
            made.training_step(CPU, (2, 16, 32, 16)),
            made.whole_volume(CPU, SCAN, patch_size=PATCH),
            made.level_set((40, 30, 20)),
            made.metrics((40, 30, 20)),
        )
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@each_bundle
def test_names_are_unique_and_cover_the_stages_of_the_work(bundle: str, device: str) -> None:
    (cases,) = cli.collect(bundle, torch.device(device)).values()
    names = {case.name for case in cases}
    assert {"export", "start_up"} <= names
    assert any("step" in name for name in names)
    assert any(name.startswith("whole_") or name == "student" for name in names)
    assert names & {"preparation", "sampler"}


@each_bundle
def test_building_cases_makes_no_inputs(bundle: str) -> None:
    inputs = module(bundle, "benchmark_inputs")
    caches = [made for made in vars(inputs).values() if hasattr(made, "cache_info")]
    before = [made.cache_info().misses for made in caches]
    cli.collect(bundle, CPU)
    assert [made.cache_info().misses for made in caches] == before
    assert caches


def test_all_variants_and_a_foreign_implementation_agree(tmp_path: Path) -> None:
    cases = with_baseline(VNET, small_cases().values(), BASELINE, tmp_path)
    assert all("baseline" in case.variants for case in cases)
    assert disagreements(cases) == {}


def test_whole_volume_finds_the_atrium_where_it_is() -> None:
    label = module(VNET, "benchmark_inputs").scan(SCAN, patch_size=PATCH, noise=1)["label"]
    mask = outputs(small_cases()["whole_volume"])["mask"]
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), label)


def test_preparation_reads_the_files_it_names() -> None:
    given = module(VNET, "benchmark_inputs")
    scan = given.scan(SCAN, patch_size=PATCH, noise=60)
    item = given.preparing(patch_size=PATCH, device=CPU)(given.case(SCAN, patch_size=PATCH))
    image, label = (item[key].numpy() for key in ("image", "label"))
    assert image.shape == label.shape
    assert label.sum() == scan["label"].sum()
    assert image[label > 0].min() > image[label == 0].max()  # as drawn


@each_bundle
def test_weights_and_batches_are_the_same_in_every_process(bundle: str) -> None:
    inputs = module(bundle, "benchmark_inputs")
    size = {VNET: (1, 16, 16, 16)}.get(bundle, (1, 16, 16))
    first = inputs.network().state_dict(), inputs.batch(size)["image"]
    inputs.network.cache_clear()
    inputs.batch.cache_clear()
    torch.manual_seed(99)
    again = inputs.network().state_dict(), inputs.batch(size)["image"]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
