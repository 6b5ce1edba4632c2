"""Reading a bundle the way MONAI Label 0.8.5 does: one config file, a few ids, one path per case."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged, SaveImaged

from tests.conftest import NamedPath, each_bundle, label_values, small
from tests.support.runs import cases
from tools import REPO

Studies = dict[str, list[dict[str, str]]]
Network = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def installed(bundle: str, weights: NamedPath, tmp_path: Path) -> Path:
    """A bundle with weights, copied to where MONAI Label keeps its models."""
    ignored = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
    copy = Path(shutil.copytree(REPO / "bundles" / bundle, tmp_path / "model" / bundle, ignore=ignored))
    shutil.copytree(weights(bundle), copy / "models")
    return copy


@pytest.fixture
def studies(bundle: str, phantoms: NamedPath, tmp_path: Path) -> Studies:
    """The phantoms as NIfTI, the usual format of a study folder, to train and to validate as MONAI Label lists them."""
    data = Path(shutil.copytree(phantoms(bundle), tmp_path / "studies"))
    for path in data.rglob("*.nrrd"):
        itk.imwrite(itk.imread(str(path)), str(path.with_suffix(".nii.gz")))
        path.unlink()
    split = cases(bundle, data)
    return {name: [{key: case[key] for key in ("image", "label")} for case in split[name]] for name in split}


def open_inference(folder: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(folder / "configs/inference.yaml"))
    parser.update({**small(folder.name, "inference"), "bundle_root": str(folder), "device": "cpu"})
    return parser


def open_network(parser: ConfigParser, folder: Path) -> torch.nn.Module:
    """The network with the weights of the shortest name."""
    file = min((folder / "models").glob("*.pt"), key=lambda path: len(path.name))
    assert file.name == "model.pt"
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


def infer(parser: ConfigParser, network: Network, image: str) -> MetaTensor:
    """Preprocessing, inferer and postprocessing as in MONAI Label: its extra entries, nothing saved."""
    data: Any = {"model": "any", "device": "cpu", "image": image, "image_path": image}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    prediction: MetaTensor = data["pred"]
    return prediction


def noise(network: torch.nn.Module) -> Network:
    """A network of the same output shape whose logits take every sign and order in many places."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return 100 * torch.randn_like(network(x))

    return forward


@each_bundle
def test_prediction_fits_the_scan(bundle: str, installed: Path, studies: Studies) -> None:
    """Whatever the network says, the label map has the scan's own grid, a type that can be written and known values."""
    torch.manual_seed(0)
    image = studies["training"][0]["image"]
    scan = LoadImage(image_only=True, ensure_channel_first=True)(image)
    parser = open_inference(installed)
    network = open_network(parser, installed)
    for answer in (network, noise(network)):
        prediction = infer(parser, answer, image)
        assert prediction.dtype in (torch.uint8, torch.float32)
        assert prediction.shape == (1, *scan.shape[1:])
        torch.testing.assert_close(prediction.affine, scan.affine)
        assert set(prediction.unique().tolist()) <= label_values(bundle)
    assert set(prediction.unique().tolist()) == label_values(bundle)


@pytest.mark.gate
@each_bundle
def test_training_on_the_users_cases(
    bundle: str, installed: Path, studies: Studies, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids that MONAI Label sets suffice: it gives cases but no dataset_dir, and starts from the present weights."""
    monkeypatch.setattr(sys, "path", [str(installed), *sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = torch.load(installed / "models/model.pt", weights_only=True)
    config = str(installed / "configs/train.yaml")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(installed / "models/model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(installed / "configs/metadata.json"),
        config_file=config,
        **{
            **small(bundle, "train"),
            "bundle_root": str(installed),
            "learning_rate": 1.0e-4,  # so low that the start can be recognised
            "train#trainer#max_epochs": 1,
            "train#dataset#data": studies["training"],
            "validate#dataset#data": studies["validation"],
            "device": "cpu",
            "train#handlers": [loader, *ConfigParser.load_config_file(config)["train"]["handlers"]],
        },
    )
    after = torch.load(installed / "models/model.pt", weights_only=True)
    assert after.keys() == before.keys()
    name = max(before, key=lambda key: before[key].numel())
    assert not torch.equal(after[name], before[name])
    likeness = torch.nn.functional.cosine_similarity(after[name].flatten(), before[name].flatten(), dim=0)
    assert likeness > 0.9, "training did not start from the weights in models/model.pt"
