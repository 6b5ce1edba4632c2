"""The whole method on synthetic CT around real KiTS19 labels, and its cascade on a real CT.

`python -m tools.experiments.<this folder>.real --help`
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fire
import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from tools.benchmark.report import environment
from tools.demo.stages import Stage
from tools.experiments.ensemble_kd_kits_ct.study import finish, stage, summary, typed
from tools.experiments.ensemble_kd_kits_ct.synthetic_ct import synthetic_ct
from tools.shared.files import write_text

MEMBERS = ("dilated", "resnet", "unet")
TEST, VALIDATION = ("case_00009", "case_00010", "case_00011"), ("case_00008",)
KIDNEYS = (2, 3)  # right and left, in the labels of the real CT
# Narrow networks and short trainings at 3 mm, so that two cores are done in half an hour.
BUDGETS: dict[str, dict[str, Any]] = {
    "locator": {"window": 33, "batch_size": 4, "epoch_length": 80, "max_epochs": 8, "learning_rate": 3.0e-3},
    "dilated": {"batch_size": 40, "epoch_length": 60, "max_epochs": 8},
    "resnet": {"window": 16, "batch_size": 12, "epoch_length": 60, "max_epochs": 8, "learning_rate": 3.0e-3},
    "unet": {"window": 16, "batch_size": 12, "epoch_length": 40, "max_epochs": 6, "learning_rate": 3.0e-3},
}


def real(data: str, output: str, *, result: str | None = None) -> Path:
    """Train the cascade, three members and the student on synthetic CT; segment the rest and a real CT.

    Args:
        data: folder with `labels/<case>/segmentation.nii.gz` of KiTS19 and `ct/ct_3mm.nii.gz` with
            `ct/auto_seg_3mm.nii.gz`.
        output: folder for what is made; an interrupted run goes on.
        result: JSON file to write; by default `real.json` in OUTPUT.

    Returns:
        The JSON file: commands, versions and scores.
    """
    root, source = Path(output), Path(data)
    scans = synthetic_ct(str(source / "labels"), str(root / "scans"))
    split = root / "split.json"
    train = sorted({path.name for path in scans.iterdir()} - {*TEST, *VALIDATION})
    split.write_text(json.dumps({"training": train, "validation": VALIDATION, "test": TEST}))
    common = {"dataset_dir": str(scans), "split_file": str(split), "ckpt_dir": str(root / "models")}
    plan = stages(root, common, ct=source / "ct/ct_3mm.nii.gz")
    finish(plan, root / "all")
    found = voxels(root / "ct/ct_3mm_seg.nii.gz")
    record = {
        "commands": [typed(command).replace(output, "OUTPUT").replace(data, "DATA") for command in plan],
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "split": json.loads(split.read_text()),
        "scores": {
            kind: {name: summary(root / f"{kind}_{name}") for name in (*MEMBERS, "ensemble", "student")}
            for kind in ("cascade", "inside")
        },
        "real CT": {
            "dice of kidneys and tumours with the automatic kidneys": dice(
                found > 0, np.isin(voxels(source / "ct/auto_seg_3mm.nii.gz"), KIDNEYS)
            ),
            "voxels of tumour": int((found == 2).sum()),
        },
    }
    record["environment"]["command"] = f"python -m tools.experiments.{Path(__file__).parent.name}.real DATA OUTPUT"
    path = Path(result) if result else root / "real.json"
    write_text(path, json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{json.dumps({name: record[name] for name in ('scores', 'real CT')}, indent=1)}\n")
    return path


def stages(root: Path, common: Mapping[str, Any], *, ct: Path) -> list[Stage]:
    """Returns the commands."""

    def training(name: str, stems: list[str], **more: Any) -> Stage:
        budget = BUDGETS["unet" if name == "student" else name]
        settings = {
            **common,
            "hard_loss": "dice",
            "output_dir": str(root / "logs"),
            "val_interval": 2,
            **budget,
            **more,
        }
        return stage(f"train {name}", "training", stems=["train", *stems, "reduced", "window"], settings=settings)

    def test(name: str, stems: list[str]) -> list[Stage]:
        """With the first stage, and as published: inside the reference labels."""
        published = {"locate": False, "clip_source": "reference"}
        return [
            stage(
                f"{kind} {name}",
                "evaluating",
                stems=["train", *stems, "reduced", "window"],
                settings={
                    **common,
                    **more,
                    **(members if name == "ensemble" else {"hard_loss": "dice"}),
                    "output_dir": str(root / f"{kind}_{name}"),
                },
            )
            for kind, more in (("cascade", {}), ("inside", published))
        ]

    soft = str(root / "soft_labels")
    members = {"names": [f"{name}_dice" for name in MEMBERS]}
    return [
        training("locator", ["train_member", "locator"]),
        *(training(name, ["train_member", f"member_{name}"]) for name in MEMBERS),
        stage(
            "soft labels",
            "annotating",
            stems=["inference", "ensemble", "annotate", "reduced", "window"],
            settings={**common, **members, "output_dir": soft},
        ),
        training("student", [], soft_labels=soft),
        *(done for name in MEMBERS for done in test(name, ["train_member", "evaluate", f"member_{name}"])),
        *test("ensemble", ["evaluate", "ensemble"]),
        *test("student", ["evaluate"]),
        stage(
            "segment a real CT",
            "inference",
            stems=["inference", "reduced", "window"],
            settings={"dataset_dir": str(ct), "ckpt_dir": common["ckpt_dir"], "output_dir": str(root / "ct")},
        ),
    ]


def voxels(path: Path) -> NDArray[Any]:
    """Voxels of a label map."""
    return np.asarray(nibabel.load(path).dataobj)


def dice(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Dice of two masks."""
    return round(2 * int((found & true).sum()) / int(found.sum() + true.sum()), 4)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(real, serialize=lambda _: None)
