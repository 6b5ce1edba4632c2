"""The overlay for TensorRT engines, with TorchScript that takes one shape in their place, as no GPU is available."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from shutil import copyfile
from traceback import format_exception
from types import ModuleType

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from tests.conftest import NamedPath, config_files, each_bundle, small
from tests.support.exports import assert_equal_masks, command, engine_size, export_settings, make, segment
from tests.support.runs import arguments, copy, run


@pytest.fixture(scope="module")
def engine(tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """The output of a card's `trt_export`, of the `tiny` network."""

    @cache
    def path(bundle: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_engine")
        return make(bundle, "trt_export", target, weights=tiny_weights(bundle) / "model.pt", tiny=True)

    return path


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `torch_tensorrt` can be imported."""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))


@pytest.mark.gate
@each_bundle
def test_overlay_segments_like_the_network(
    bundle: str, engine: NamedPath, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, tensorrt: None
) -> None:
    """With an engine as the card's command makes it, though of TorchScript, which takes inputs of one size only."""
    copy(tiny_weights(bundle), tmp_path / "models")
    data, same = phantoms(bundle), {**small(bundle, "inference_trt"), **export_settings(bundle)["overrides"]}
    run(bundle, "inference", data=data, folder=tmp_path, output_dir=str(tmp_path / "eager"), **same)
    (tmp_path / "models/model.pt").unlink()
    copyfile(engine(bundle), tmp_path / "models/model_trt.ts")
    segment(bundle, "inference_trt", data=data, folder=tmp_path, output_dir=str(tmp_path / "found"), **same)
    assert_equal_masks(tmp_path / "found", tmp_path / "eager")


@each_bundle
def test_properties_of_the_overlay(
    bundle: str, engine: NamedPath, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, tensorrt: None
) -> None:
    copy(tiny_weights(bundle), tmp_path / "models")
    copyfile(engine(bundle), tmp_path / "models/model_trt.ts")
    given = arguments(bundle, "inference_trt", data=phantoms(bundle), folder=tmp_path)
    files, _ = given.pop("config_file"), given.pop("run_id")
    given = {name: value for name, value in given.items() if not name.startswith("network_def#")}
    opened = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **{**given, "amp": None})
    opened.initialize()
    assert opened.check_properties() == []


@each_bundle
def test_overlay_and_command_agree(bundle: str) -> None:
    """An engine made by the card's command takes what the overlay gives it; autocast is off."""
    shape = json.loads(command(bundle, "trt_export")["input_shape"])
    assert shape[2:] == engine_size(bundle)
    assert shape[0] == 1
    assert ConfigParser.load_config_files(config_files(bundle, "inference_trt"))["amp"] is False


@each_bundle
def test_overlay_names_what_is_missing(
    bundle: str,
    phantoms: NamedPath,
    tiny_weights: NamedPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before any scan is read."""
    copy(tiny_weights(bundle), tmp_path / "models")
    for reason in ("import torch_tensorrt (No module named", f"{tmp_path / 'models/model_trt.ts'} does not exist"):
        with pytest.raises(RuntimeError) as rejected:
            segment(bundle, "inference_trt", data=phantoms(bundle), folder=tmp_path)
        assert reason in "".join(format_exception(rejected.value))
        monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    assert "Checking" not in capfd.readouterr().err
    assert not (tmp_path / "eval").exists()
