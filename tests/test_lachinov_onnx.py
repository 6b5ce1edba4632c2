"""The student in ONNX, exported by the model card's own command: any size, the same answer in onnxruntime."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from lachinov_distillation.networks import ResUNet
from tools import REPO

CARD = REPO / "bundles/lachinov_distillation_brats_mri/docs/README.md"


@pytest.fixture(scope="module")
def network() -> ResUNet:
    torch.manual_seed(0)
    return ResUNet().eval()


@pytest.fixture(scope="module")
def session(network: ResUNet, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    folder = tmp_path_factory.mktemp("onnx")
    torch.save(network.state_dict(), folder / "model.pt")
    (command,) = re.findall(r"^python (-m monai\.bundle onnx_export .*)$", CARD.read_text(), re.MULTILINE)
    configs = CARD.parents[1] / "configs"
    words = [word.replace("$C", str(configs)) for word in shlex.split(command)]
    subprocess.run(
        [sys.executable, *words], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(CARD.parents[1])}
    )
    return onnxruntime.InferenceSession(str(folder / "student.onnx"))


@pytest.mark.parametrize("size", [(32, 32, 32), (48, 40, 24), (8, 64, 16)])
def test_onnxruntime_equals_torch(
    size: tuple[int, int, int], network: ResUNet, session: onnxruntime.InferenceSession
) -> None:
    scan = torch.randn(1, 4, *size)
    with torch.inference_mode():
        expected = network(scan).sigmoid().numpy()
    (found,) = session.run(["pred"], {"image": scan.numpy()})
    assert found.shape == (1, 3, *size)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, atol=1e-4)


def test_sizes_are_free_and_channels_are_not(session: onnxruntime.InferenceSession) -> None:
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("image", [1, 4, "h", "w", "d"])
    assert (found.name, found.shape[1]) == ("pred", 3)
