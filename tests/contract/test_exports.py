"""Outputs of the export commands of the cards: they answer like the network at any size, and segment scans like it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from tests.conftest import NAMES, NamedPath, config_files, each_bundle, each_of_two, recipe
from tests.support.exports import assert_equal_masks, command, export_settings, folder, make, segment, words
from tests.support.runs import copy, run

NETWORKS = [
    (bundle, file, source["network"])
    for bundle in NAMES
    for file, source in recipe(bundle)["weights"].items()
    if source["files"] == ["inference"]
]
each_network = pytest.mark.parametrize(("bundle", "file", "net_id"), NETWORKS)
Exported = Callable[..., Path]


def network(bundle: str, net_id: str, *, weights: Path, **overrides: Any) -> nn.Module:
    """A network of inference.yaml in evaluation mode."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update(overrides)
    made: nn.Module = parser.get_parsed_content(net_id)
    made.load_state_dict(torch.load(weights, weights_only=True))
    return made.eval()


def inputs(bundle: str, net_id: str) -> list[torch.Tensor]:
    """Random inputs: a single one, two of that size, two of another."""
    metadata = json.loads((folder(bundle) / "configs/metadata.json").read_text(encoding="utf-8"))
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    first, other = export_settings(bundle)["inputs"][net_id]
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, channels, *first), (2, channels, *first), (2, channels, *other))
    return [torch.rand(shape, generator=generator) for shape in shapes]


@pytest.fixture(scope="module")
def exported(weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The output of a card's export command, of random weights."""

    @cache
    def path(bundle: str, verb: str, file: str, net_id: str) -> Path:
        given: dict[str, Any] = {"net_id": net_id}
        size, options = export_settings(bundle)["inputs"][net_id][0], command(bundle, verb)
        if "input_shape" in options and len(json.loads(options["input_shape"])) > 2 + len(size):  # it sees slices
            given["input_shape"] = str([1, 1, *size])
            given["converter_kwargs"] = options["converter_kwargs"].replace(",4:'d'", "")
        return make(bundle, verb, tmp_path_factory.mktemp(verb), weights=weights(bundle) / file, **given)

    return path


@pytest.mark.gate
@each_network
def test_torchscript_equals_eager(bundle: str, file: str, net_id: str, exported: Exported, weights: NamedPath) -> None:
    extra = {"metadata.json": "", "inference.json": ""}
    path = exported(bundle, "ckpt_export", file, net_id)
    found = torch.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]
    expected = network(bundle, net_id, weights=weights(bundle) / file)
    with torch.inference_mode():
        for x in inputs(bundle, net_id):  # a single small volume may be convolved in another way
            torch.testing.assert_close(found(x), expected(x), rtol=1e-4, atol=1e-4)
    stored = ConfigParser.load_config_file(folder(bundle) / "configs/inference.yaml")
    assert json.loads(extra["inference.json"]) == stored
    assert json.loads(extra["metadata.json"])["version"]


@pytest.mark.gate
@each_network
def test_onnxruntime_equals_eager(bundle: str, file: str, net_id: str, exported: Exported, weights: NamedPath) -> None:
    """Batches and spatial sizes are free, channels are not."""
    found = onnxruntime.InferenceSession(str(exported(bundle, "onnx_export", file, net_id)))
    expected = network(bundle, net_id, weights=weights(bundle) / file)
    for x in inputs(bundle, net_id):
        with torch.inference_mode():
            logits = expected(x)
        (answer,) = found.run(["pred"], {"image": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    (given,) = found.get_inputs()
    assert (given.name, given.shape) == ("image", ["batch", x.shape[1], *"hwd"[: x.ndim - 2]])


@pytest.mark.gate
@each_of_two
def test_onnx_without_options(bundle: str, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """PyTorch's newer exporter, which MONAI takes by default, gives a network of one size that answers likewise."""
    x, weights = inputs(bundle, "network_def")[0], tiny_weights(bundle) / "model.pt"
    given = {"input_shape": str(list(x.shape)), "use_trace": "False", "converter_kwargs": "{}"}
    path = make(bundle, "onnx_export", tmp_path, weights=weights, tiny=True, **given)
    session = onnxruntime.InferenceSession(str(path))
    expected = network(bundle, "network_def", weights=weights, **recipe(bundle)["tiny"])
    with torch.inference_mode():
        logits = expected(x)
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert session.get_inputs()[0].shape == list(x.shape)


@pytest.mark.gate
@each_of_two
def test_commands_as_typed(bundle: str, weights: NamedPath, tmp_path: Path) -> None:
    """From inside a bundle that lies anywhere, in a process of its own."""
    root = tmp_path / bundle
    copy(folder(bundle) / "configs", root / "configs")
    (package,) = (path.parent for path in folder(bundle).glob("*/__init__.py"))
    copy(package, root / package.name)
    copy(weights(bundle), root / "models")
    for verb in ("ckpt_export", "onnx_export"):
        given = command(bundle, verb)
        typed = [sys.executable, "-m", "monai.bundle", verb, *words(given)]
        done = subprocess.run(typed, cwd=root, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (root / given["filepath"]).stat().st_size > 10_000


@pytest.mark.gate
@each_bundle
def test_torchscript_segments_like_the_network(
    bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the card's command; MONAI Label opens `models/model.ts` and hands it to the same inferer likewise."""
    copy(tiny_weights(bundle), tmp_path / "models")
    (tmp_path / "exported/models").mkdir(parents=True)
    make(bundle, "ckpt_export", tmp_path / "exported/models", weights=tmp_path / "models/model.pt", tiny=True)
    data, common = phantoms(bundle), export_settings(bundle)["overrides"]
    run(bundle, "inference", data=data, folder=tmp_path, output_dir=str(tmp_path / "eager"), **common)
    (tmp_path / "models/model.pt").unlink()
    given = command(bundle, "run inference", having="--network_def")
    monkeypatch.chdir(tmp_path / "exported")
    options = {"network_def": given["network_def"], "load": json.loads(given["load"].lower()), **common}
    segment(bundle, "inference", data=data, folder=tmp_path, output_dir=str(tmp_path / "found"), **options)
    assert_equal_masks(tmp_path / "found", tmp_path / "eager")
