"""The locator inside the workflows of the left-atrium bundle."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from tests.conftest import NamedPath, small
from tests.runs import copy, load, run

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
