"""Distillation of another bundle's network: the atrial V-Net teaches a smaller network, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from ensemble_kd.networks import DilatedCNN
from tests.conftest import NamedPath
from tests.support.runs import command_line
from tools import REPO
from tools.registry.pack import pack

BUNDLE, ATRIAL = "ensemble_kd_kits_ct", "vnet_atrial_mri"
# Two classes, background and atrium, on a grid that is not the teacher's.
COMMON: dict[str, Any] = {
    "label_groups": [[0], [255]],
    "axes": [2],
    "structures": {"atrium": [1]},
    "pixdim": [6.0, 6.0, 6.0],
    "locate": False,
    "inside": False,
    "receptive_field": 35,
    "dilated_channels": 8,
    "dropout": 0.0,
    "normalize": {"_target_": "NormalizeIntensityd", "keys": "image"},
    "device": "cpu",
    "amp": False,
}
TEACHER = {"locate": False, "pixdim": [5.0, 5.0, 2.5], "patch_size": [32, 32, 16]}
TINY = {"network_def#channels": [2, 4, 8, 16, 32]}


def go(run_id: str, *stems: str, **given: Any) -> None:
    """Runs a workflow in a process of its own, which has not loaded the atrial bundle from elsewhere."""
    files = [str(REPO / f"bundles/{BUNDLE}/configs/{stem}.yaml") for stem in stems]
    words = ["-m", "monai.bundle", *command_line({"run_id": run_id, "config_file": files, **COMMON, **given})]
    done = subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def teacher(weights: Path, folder: Path) -> Path:
    """The bundle's release zip, and beside it weights of a tiny V-Net that is surer than random ones are."""
    state = torch.load(weights / "model.pt", weights_only=True)
    last = list(state)[-2:]
    torch.save(state | {name: 40 * state[name] for name in last}, folder / "model.pt")
    pack(ATRIAL, output=str(folder))
    (archive,) = folder.glob("*.zip")
    return archive


@pytest.mark.nightly
def test_small_network_learns_from_the_atrial_one(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Without any label the student comes nearer to the teacher than the best constant is, on scans it has not seen."""
    folders = sorted(path for path in phantoms(ATRIAL).iterdir() if path.is_dir())
    files = [{"case": f.name, "image": str(f / "lgemri.nrrd"), "label": str(f / "laendo.nrrd")} for f in folders]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": files[:-1], "validation": files[-1:]}))
    archive = teacher(tiny_weights(ATRIAL), tmp_path)
    member = {
        "_target_": "ensemble_kd.external.BundleMember",
        "name": "atrium",
        "bundle": str(archive),
        "channels": [[], [0]],
        "weights": str(tmp_path / "model.pt"),
        "overrides": TEACHER | TINY,
    }
    soft, models = str(tmp_path / "soft"), str(tmp_path / "models")
    go("annotating", "inference", "ensemble", "annotate", dataset_dir=str(datalist), output_dir=soft, members=[member])
    sampling = {"window": 17, "criterion": "entire-sample-area", "ratios": [1, 1], "full_background": 90, "rotation": 0}
    schedule = {"batch_size": 16, "epoch_length": 80, "max_epochs": 2, "val_interval": 2, "learning_rate": 5.0e-3}
    places = {
        "dataset_dir": str(datalist),
        "soft_labels": soft,
        "ckpt_dir": models,
        "output_dir": str(tmp_path / "logs"),
    }
    go("training", "train", "member_dilated", alpha=0.0, **places, **sampling, **schedule)
    go(
        "inference",
        "inference",
        "member_dilated",
        dataset_dir=str(datalist),
        ckpt_dir=models,
        output_dir=str(tmp_path / "masks"),
    )
    assert len(list((tmp_path / "masks").rglob("*_seg*"))) == len(files)

    parser = ConfigParser()
    parser.read_config(
        [str(REPO / f"bundles/{BUNDLE}/configs/{stem}.yaml") for stem in ("inference", "member_dilated")]
    )
    parser.update(COMMON)
    network = DilatedCNN(2, 35, channels=8)
    network.load_state_dict(torch.load(tmp_path / "models/training_state.pt", weights_only=True)["network"])
    scan = parser.get_parsed_content("preprocessing")({"image": files[-1]["image"]})["image"]
    found = parser.get_parsed_content("predictor")(scan[None], network.eval())[0, 1].numpy()
    name = files[-1]["case"]
    taught = np.asarray(nibabel.load(f"{soft}/{name}/{name}_soft.nii.gz").dataobj)[..., 1]
    assert taught.shape == found.shape
    assert sum(value.numel() for value in network.parameters()) < 10_000
    assert taught.std() > 0.1
    assert np.square(found - taught).mean() < 0.7 * taught.var()
