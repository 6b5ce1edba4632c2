"""Outputs of a demo for further use: the trained bundle, and held-out scans as a study folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from tests.conftest import NAMES, each_bundle
from tests.conftest import recipe as small_recipe
from tools import REPO
from tools.data.phantoms import phantoms as make_phantoms
from tools.demo.cli import output_bundle
from tools.demo.outputs import write_bundle, write_studies

read = LoadImage(image_only=True)


def recipe_of(bundle: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPO / "tools/per_bundle" / bundle / "demo.yaml").read_text())
    return content


def trained_bundle(bundle: str, output: Path, **overrides: Any) -> Path:
    """The output bundle of a demo on phantoms, if its weights were these."""
    recipe = recipe_of(bundle)
    models = Path(recipe["bundle"]["models"].format(output=output))
    models.mkdir(parents=True, exist_ok=True)
    for name in ("model.pt", "training_state.pt", "model_previous.pt"):
        torch.save({"weight": torch.zeros(1)}, models / name)
    return output_bundle(
        REPO / "bundles" / bundle,
        recipe,
        scenario=recipe["phantoms"],
        places={"output": str(output)},
        overrides=overrides,
    )


@each_bundle
def test_trained_bundle_has_the_settings_of_the_demo(bundle: str, tmp_path: Path) -> None:
    """Both configs hold them, and make the same network."""
    folder = trained_bundle(bundle, tmp_path, seed=5)
    assert folder == tmp_path / "bundle" / bundle
    phantoms = recipe_of(bundle)["phantoms"]
    shapes = []
    for stem in ("inference", "train"):
        parser = ConfigParser(ConfigParser.load_config_file(folder / f"configs/{stem}.yaml"))
        for name, value in phantoms["settings"].items():
            if name in parser.config:
                assert parser.config[name] == value
        network = parser.get_parsed_content("network_def")
        shapes.append({name: tuple(value.shape) for name, value in network.state_dict().items()})
    assert parser.config["seed"] == 5
    assert shapes[0] == shapes[1]
    assert [path.name for path in (folder / "models").iterdir()] == ["model.pt"]
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    assert metadata["version"] == "0.0.0"
    assert metadata["changelog"].keys() == {"0.0.0"}
    assert metadata["description"].startswith("Trained by a demo, its settings are those of the demo. ")


def test_what_lies_in_the_models_of_the_bundle_is_not_looked_at(tmp_path: Path) -> None:
    source, models = tmp_path / "toy", tmp_path / "trained"
    (source / "configs").mkdir(parents=True)
    for file in ("inference.yaml", "metadata.json"):
        shutil.copy(REPO / "bundles" / NAMES[0] / "configs" / file, source / "configs")
    for folder in (source / "models", models):
        folder.mkdir()
        (folder / "model.pt").write_text(f"of {folder.name}")
    (source / "models/stray.pt").write_text("no weights")
    copy = write_bundle(source, tmp_path / "copy", models=models, overlays=[], settings={"inference": {}})
    assert [path.read_text() for path in (copy / "models").iterdir()] == ["of trained"]


def test_trained_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = trained_bundle(NAMES[0], tmp_path)
    (folder / "configs/old.yaml").write_text("a: 1")
    trained_bundle(NAMES[0], tmp_path)
    assert not (folder / "configs/old.yaml").exists()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == [NAMES[0]]


@each_bundle
def test_studies_hold_the_scans_alone(bundle: str, tmp_path: Path) -> None:
    """Named so that no two have one id, and that sequences of a brain are found side by side."""
    data = make_phantoms(bundle, str(tmp_path / "data"), cases=1, **small_recipe(bundle)["phantoms"])
    studies = write_studies(data, tmp_path / "studies", labels=recipe_of(bundle)["bundle"]["labels"])
    (case,) = (path for path in data.iterdir() if path.is_dir())
    named = small_recipe(bundle)["studies"]
    expected = {f"{target.format(case=case.name)}.nii.gz": case / source for target, source in named.items()}
    assert sorted(path.name for path in studies.iterdir()) == sorted(expected)
    for name, source in expected.items():
        found, scan = read(studies / name), read(source)
        assert torch.equal(found, scan)
        torch.testing.assert_close(found.affine, scan.affine)
