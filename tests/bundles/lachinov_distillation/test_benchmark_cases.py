"""Benchmark cases of the distillation bundle agree with formulas of their own."""

from pathlib import Path

import torch
from ignite.utils import manual_seed

from tests.support.benchmark import CPU, disagreements, module, with_baseline

BUNDLE = "lachinov_distillation_brats_mri"
FILES, SIZE, PATCH = (32, 38, 30), (32, 48, 32), (32, 32, 16)

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


def test_all_variants_and_a_foreign_implementation_agree(tmp_path: Path) -> None:
    small = [module(BUNDLE).training_step(CPU, PATCH), module(BUNDLE).whole_brain(CPU, SIZE)]
    cases = with_baseline(BUNDLE, small, BASELINE, tmp_path)
    assert all("baseline" in case.variants for case in cases)
    assert disagreements(cases) == {}


def test_a_step_trains_every_parameter_and_leaves_the_weights_alone() -> None:
    """What a foreign implementation gets has the reference's 93 tensors."""
    manual_seed(0)
    case = module(BUNDLE).training_step(CPU, PATCH)
    step, state = case.variants["eager"].prepare(), case.state_dict()
    assert len(state) == 93
    first, second = step(), step()
    assert len(first["parameters"]) == 86
    dead = ("decoder_convs.3.", "decoder_convs1x1.3.")
    before = torch.stack([value.double().mean() for key, value in sorted(state.items()) if not key.startswith(dead)])
    moved = (first["parameters"] - before).abs()
    assert 0 < moved.min() < moved.max() <= 1.001 * module(BUNDLE).RATE
    assert second["loss"] != first["loss"]  # the second step starts from what the first left
    assert all(torch.equal(state[key], value) for key, value in case.state_dict().items())


def test_a_scan_is_what_the_student_learns_from() -> None:
    scan = {key: value[0] for key, value in module(BUNDLE, "benchmark_inputs").batch(SIZE).items()}
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


def test_a_prepared_scan_is_the_brain_with_three_regions() -> None:
    given = module(BUNDLE, "benchmark_inputs")
    item = given.preparing(pixdim=[6.0, 6.0, 6.0], size=list(SIZE), patch_size=list(PATCH))(given.patient(FILES))
    assert item["image"].shape == (4, *SIZE)
    assert item["label"].shape == (3, *SIZE)
    assert (item["label"][0] >= item["label"][1]).all()


def test_samples_differ_but_not_between_preparations() -> None:
    eager = module(BUNDLE).sampler(SIZE, patch=PATCH).variants["eager"]
    first, second, again = (eager.prepare() for _ in range(3))
    sample, same = first(), second()
    assert sample["image"].shape == (4, *PATCH)
    assert sample["label"].shape == (3, *PATCH)
    torch.testing.assert_close(sample, same, rtol=0, atol=0)
    assert not torch.equal(again()["image"], again()["image"])
