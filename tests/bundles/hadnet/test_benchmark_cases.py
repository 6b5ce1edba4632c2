"""Benchmark cases of the brain-tumour bundle agree with formulas and a geometry of their own."""

from pathlib import Path

import numpy as np
import torch

from tests.support.benchmark import CPU, disagreements, module, outputs, with_baseline
from tools.benchmark import BenchmarkCase

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
"""


def whole_scan() -> BenchmarkCase:
    made: BenchmarkCase = module(BUNDLE).whole_scan(CPU, SCAN, size=SIZE, filters=8)
    return made


def test_a_foreign_implementation_agrees(tmp_path: Path) -> None:
    small = [module(BUNDLE).adversarial_step(CPU, (32, 48, 48), filters=8), whole_scan()]
    cases = with_baseline(BUNDLE, small, BASELINE, tmp_path)
    assert all("baseline" in case.variants for case in cases)
    assert disagreements(cases) == {}


def test_a_step_trains_every_network_but_the_teacher() -> None:
    """The discriminator, too, which otherwise waits while it is good."""
    given = module(BUNDLE, "benchmark_inputs")
    trainer, networks = given.trainer((32, 32, 32), filters=8, device=CPU, amp=False)
    before = {role: made.head.weight.detach().clone() for role, made in networks.items()}
    trainer.run()
    changed = {role for role, made in networks.items() if not torch.equal(made.head.weight, before[role])}
    assert changed == {"student", "discriminator"}
    assert trainer.threshold == 1


def test_a_prepared_scan_is_as_the_network_sees_it() -> None:
    given = module(BUNDLE, "benchmark_inputs")
    item = given.preparing(size=SIZE, pixdim=(5, 5, 5))(given.case(SCAN, spacing=(5, 5, 5)))
    assert item["image"].shape == (4, *SIZE)
    assert item["image"].max() <= 1
    assert item["label"].unique().tolist() == [0, 1, 2, 3]


def test_shares_of_a_whole_scan_are_those_of_its_label_map_part_by_part() -> None:
    share = outputs(whole_scan())["share"]
    np.testing.assert_allclose(share.sum(0), 1, rtol=1e-6)
    assert (share[1:].amax((1, 2, 3)) > 0).all()
    assert not torch.equal(share, share.flip(1))
