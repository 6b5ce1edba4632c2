"""Two small experiments on real scans; `python -m tools.experiments.<this folder>.real --help`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fire
import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from tools import REPO
from tools.benchmark.report import environment
from tools.shared.files import write_text

CONFIGS = f"bundles/{Path(__file__).parent.name}/configs"
PATIENT = "TCGA-DU-7294"
MEMBERS = ("hnfnetv1-20", "isen-20", "sanet0-20", "scan-20", "yixinmpl-20")
FUSIONS = ("mav", "simple")
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
# Coarse voxels and narrow networks, so that two cores are done in minutes.
SMALL: dict[str, Any] = {
    "sequences": ["flair"],
    "label_order": ["NCR", "ED", "NCR", "ET"],  # of BraTS 2015
    "pixdim": [4.0, 4.0, 4.0],
    "size": [48, 48, 48],
    "patch_size": [32, 32, 32],
    "channels": [8, 16, 32, 64],
    "filters": [8, 16, 32, 64],
    "base": 2,
    "cascade_size": [32, 64, 32],
    "batch_size": 2,
}


def real(data: str, output: str, *, result: str | None = None, epochs: int = 20) -> Path:
    """Annotate a low-grade glioma from five programs' masks, and BraTS 2018 scans by teachers trained on BraTS 2015.

    Args:
        data: folder with `tcga_lgg_4mod`, `brats15_flair_t1ce` and `brats18_flair_t1`.
        output: folder for what is made; made masks are not made again.
        result: JSON file to write; by default `real.json` in OUTPUT.
        epochs: of every training, 16 steps each for the teachers and 12 for the student.

    Returns:
        The JSON file: commands, versions and scores.
    """
    commands: list[str] = []
    root, source = Path(output).absolute(), Path(data).absolute()
    record: dict[str, Any] = {
        "fusion": fusion(source, root / "fusion", commands=commands),
        "transfer": transfer(source, root / "transfer", commands=commands, epochs=epochs),
        "commands": [text.replace(str(root), "OUTPUT").replace(str(source), "DATA") for text in commands],
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    record["environment"]["command"] = f"python -m tools.experiments.{Path(__file__).parent.name}.real DATA OUTPUT"
    path = Path(result) if result else root / "real.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def fusion(source: Path, output: Path, *, commands: list[str]) -> dict[str, Any]:
    """Annotates the glioma with the five programs as members; returns the Dice of all masks with two fusions."""
    folder = source / "tcga_lgg_4mod" / PATIENT
    members = [
        {
            "_target_": "lachinov_distillation.ensemble.FileMember",
            "name": name,
            "files": f"{folder}/auto_{name}.nii.gz",
            "predicts": "labels",
        }
        for name in MEMBERS
    ]
    settings = {"dataset_dir": str(folder.parent), "output_dir": str(output), "members": members}
    bundle_run("annotating", ["inference", "ensemble", "annotate"], settings=settings, commands=commands)
    masks = {"ensemble": voxels(output / PATIENT / f"{PATIENT}_label.nii.gz")}
    masks |= {name: voxels(folder / f"auto_{name}.nii.gz") for name in MEMBERS}
    fused = {name: voxels(folder / f"auto_{name}.nii.gz") for name in FUSIONS}
    unsure = np.asarray(nibabel.load(output / PATIENT / f"{PATIENT}_disagreement.nii.gz").dataobj) > 0
    scores = {
        name: {
            other: {region: dice(mask, against, region=region) for region in REGIONS}
            for other, against in fused.items()
        }
        for name, mask in masks.items()
    }
    return {
        "dice": scores,
        "voxels_of_enhancing_tumour": {name: int((mask == 4).sum()) for name, mask in (masks | fused).items()},
        "voxels_on_which_members_differ": int(unsure.sum()),
    }


def transfer(source: Path, output: Path, *, commands: list[str], epochs: int) -> dict[str, Any]:
    """Trains three teachers and a student on FLAIR alone; returns the Dice of the whole tumour on two BraTS 2018 scans.

    The last of the four labelled patients chooses the weights. The student has seen the two scans, with the ensemble's
    labels, so its scores are not those of held-out patients.
    """
    data, scans = source / "brats15_flair_t1ce", source / "brats18_flair_t1"
    names = sorted(path.name for path in data.iterdir())
    output.mkdir(parents=True, exist_ok=True)
    split = output / "split.json"
    split.write_text(json.dumps({"training": names[:-1], "validation": names[-1:]}))
    common = SMALL | {"ckpt_dir": str(output / "models")}
    training = common | {"dataset_dir": str(data), "split_file": str(split), "max_epochs": epochs, "val_interval": 5}
    for name in ("resunet", "cascaded", "unet"):
        settings = training | {"patches_per_case": 11, "output_dir": str(output / "logs")}
        bundle_run("training", ["train", "train_teacher", f"teacher_{name}"], settings=settings, commands=commands)
    pseudo = output / "pseudo_labels"
    settings = common | {"dataset_dir": str(scans), "output_dir": str(pseudo)}
    bundle_run("annotating", ["inference", "ensemble", "annotate"], settings=settings, commands=commands)
    own: dict[str, Any] = {
        "pseudo_labels": str(pseudo / "datalist.json"),
        "patches_per_case": 5,
    }
    settings = training | own | {"output_dir": str(output / "logs")}
    bundle_run("training", ["train"], settings=settings, commands=commands)
    found = {"ensemble": (pseudo, "label")}
    for name, weights in (("resunet", "teacher_resunet.pt"), ("student", "model.pt")):  # one network, two trainings
        found[name] = (output / name, "tumour")
        settings = {
            "dataset_dir": str(scans),
            "output_dir": str(output / name),
            "weights": f"{output}/models/{weights}",
        }
        bundle_run("inference", ["inference"], settings=common | settings, commands=commands)
    return {
        "dice_WT": {
            name: {
                case.name: dice(
                    voxels(folder / case.name / f"{case.name}_{kind}.nii.gz"), 2 * voxels(case / "wt.nii.gz")
                )
                for case in sorted(scans.iterdir())
            }
            for name, (folder, kind) in found.items()
        }
    }


def bundle_run(run_id: str, stems: list[str], *, settings: Mapping[str, Any], commands: list[str]) -> None:
    """Runs a workflow of the bundle in a process of its own, and notes the command."""
    files = [f"{CONFIGS}/{stem}.yaml" for stem in stems]
    words = ["-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    commands.append(" ".join(["python", *(f'"{word}"' if " " in word else word for word in words)]))
    subprocess.run([sys.executable, *words], cwd=REPO, check=True)


def voxels(path: Path) -> NDArray[Any]:
    """Voxels of a mask."""
    return np.asarray(nibabel.load(path).dataobj)


def dice(one: NDArray[Any], other: NDArray[Any], *, region: str = "WT") -> float:
    """Dice of a region in two label maps, 1 where neither has it."""
    found, true = (np.isin(mask, REGIONS[region]) for mask in (one, other))
    sizes = int(found.sum() + true.sum())
    return round(2 * int((found & true).sum()) / sizes, 4) if sizes else 1.0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(real, serialize=lambda _: None)
