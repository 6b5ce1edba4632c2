"""Benchmark cases of the cardiac bundle: what they measure is what the configs do."""

import pytest
import torch

from tests.support.benchmark import CPU, module, outputs

BUNDLE = "cooperative_training_acdc_mri"
SCAN, PATCH = (64, 60, 3), (48, 48)


def test_the_step_has_the_losses_of_training_masked_by_channel() -> None:
    found = outputs(module(BUNDLE).cooperative_step(CPU, (4, 64, 64)))
    hard = [name for name in found if name.startswith("hard")]
    assert hard == ["hard_seg", "hard_image", "hard_shape_of_image", "hard_shape"]
    assert module(BUNDLE, "benchmark_inputs").cooperation(None).image_masking.kinds == ("channel",)
    assert all(torch.isfinite(value).all() for value in found.values())


def test_a_prepared_volume_is_scaled_and_keeps_its_classes() -> None:
    given = module(BUNDLE, "benchmark_inputs")
    item = given.preparing()(given.labelled(SCAN))
    assert item["image"].shape == item["label"].shape
    assert (item["image"].min(), item["image"].max()) == (0, 1)
    assert item["label"].unique().tolist() == [0, 1, 2, 3]


def test_shares_of_a_whole_stack_are_those_of_its_label_map() -> None:
    share = outputs(module(BUNDLE).whole_stack(CPU, SCAN, patch_size=PATCH))["share"]
    assert share.sum().item() == pytest.approx(1)
    assert (share[1:] > 0).any()
