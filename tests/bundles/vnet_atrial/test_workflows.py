"""The locator inside the workflows of the left-atrium bundle."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from tests.bundles.vnet_atrial.reference import config
from tests.conftest import NamedPath, small
from tests.support.runs import cases, copy, load, network_of, run, same

ATRIAL = "vnet_atrial_mri"


@pytest.mark.parametrize("found", [True, False])
def test_atrium_not_found(
    found: bool, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A segmentation network that marks all it sees shows what it is given: the patch, or the whole volume."""
    models = copy(tiny_weights(ATRIAL), tmp_path / "models")
    for name, bias in (("locator.pt", 100.0 if found else -100.0), ("model.pt", 100.0)):
        state = load(models / name)
        torch.save(state | {"head.conv.bias": state["head.conv.bias"] + bias}, models / name)
    caplog.set_level(logging.WARNING)
    run(ATRIAL, "inference", data=phantoms(ATRIAL), folder=tmp_path)
    with (tmp_path / "eval/report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    size = int(np.prod(small(ATRIAL, "inference")["patch_size"]))
    assert rows
    for row in rows:
        (path,) = (tmp_path / "eval" / row["case"]).iterdir()
        mask = LoadImage(image_only=True)(path)
        assert row["atrium_found"] == str(found)
        assert int(mask.sum()) == (size if found else mask.numel())
        warned = [text for text in caplog.messages if row["image"] in text and "no left atrium found" in text]
        assert len(warned) == (0 if found else 1)


def test_locator_that_was_asked_for(tmp_path: Path) -> None:
    """Only in the default place may weights be absent; a file that was named must be there."""
    for stems in (("inference",), ("inference", "reference_inference"), ("train", "evaluate")):
        assert config(*stems, ckpt_dir=str(tmp_path)).get_parsed_content("locate") is False
        with pytest.raises(RuntimeError) as caught:
            config(*stems, locator_weights=str(tmp_path / "typo.pt")).get_parsed_content("locate")
        cause = caught.value.__cause__
        assert type(cause).__name__ == "InputError"
        assert f"{tmp_path / 'typo.pt'}: there are no such weights" in str(cause)


def test_reference_inference_sees_what_its_evaluation_does(
    phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """A scan that is smaller than a patch is padded with zeros in both."""
    (case, *_) = cases(ATRIAL, phantoms(ATRIAL))["validation"]
    given: dict[str, Any] = {"ckpt_dir": str(tiny_weights(ATRIAL)), "locate": False, "patch_size": [96, 96, 32]}
    given |= {"pixdim": [5.0, 5.0, 2.5], "device": "cpu"}
    inference = config("inference", "reference_inference", **given).get_parsed_content("preprocessing")
    evaluation = config("train", "evaluate", "reference", **given).get_parsed_content("validate::preprocessing")
    images = [transform(dict(case))["image"] for transform in (inference, evaluation)]
    assert images[0].shape == (1, 96, 96, 32)
    assert torch.equal(*images)


@pytest.mark.parametrize(("weights", "locate"), [(False, None), (True, False)])
def test_without_a_locator(
    weights: bool, locate: bool | None, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """Without its weights, or when told so, the whole volume is segmented, and the report says so."""
    models = copy(tiny_weights(ATRIAL), tmp_path / "models")
    if not weights:
        (models / "locator.pt").unlink()
    state = load(models / "model.pt")
    torch.save(state | {"head.conv.bias": state["head.conv.bias"] + 100.0}, models / "model.pt")
    run(ATRIAL, "inference", data=phantoms(ATRIAL), folder=tmp_path, **({} if locate is None else {"locate": locate}))
    with (tmp_path / "eval/report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["atrium_found"] for row in rows} == {"no locator"}
    for row in rows:
        (path,) = (tmp_path / "eval" / row["case"]).iterdir()
        mask = LoadImage(image_only=True)(path)
        assert int(mask.sum()) == mask.numel()


def test_training_starts_from_given_weights_and_goes_on_from_its_own(
    phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """At a learning rate of 0 a new run keeps what it started from, and goes on from its own state without them."""
    start = copy(tiny_weights(ATRIAL), tmp_path / "given") / "model.pt"
    options: dict[str, Any] = {"data": phantoms(ATRIAL), "folder": tmp_path, "learning_rate": 0.0}
    run(ATRIAL, "train", max_epochs=1, start=str(start), **options)
    given, first = load(start), network_of(tmp_path)
    assert same(first, given)
    averaged = load(tmp_path / "models/model.pt")
    assert all(torch.allclose(averaged[name], value, atol=1e-6) for name, value in given.items())
    start.unlink()
    run(ATRIAL, "train", max_epochs=2, start=str(start), **options)
    assert same(network_of(tmp_path), first)
