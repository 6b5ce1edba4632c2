"""What the Lachinov bundle alone has: three stages that chain, several data sets as one, sequences in one volume."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lachinov_distillation.make_datalist import make_datalist
from tests.conftest import NamedPath
from tests.support.runs import copy, load, run
from tools.data.phantoms import phantoms as make_phantoms

BUNDLE = "lachinov_distillation_brats_mri"
SEQUENCES = ("t1", "t1ce", "t2", "flair")
DECATHLON = ("flair", "t1", "t1ce", "t2")
MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def array(path: Path | str) -> NDArray[Any]:
    return np.asarray(nibabel.load(path).dataobj)


def stacked(folder: Path, target: Path, *, order: tuple[str, ...]) -> Path:
    """Writes the sequences of a case as one 4D volume."""
    scans = [nibabel.load(next(folder.glob(f"*_{name}.nii.gz"))) for name in order]
    volume = np.stack([np.asarray(scan.dataobj) for scan in scans], -1)
    target.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, scans[0].affine), target)
    return target


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled cases and one without label in the layout and with the label numbers of the Decathlon."""
    root = tmp_path_factory.mktemp("task01")
    make_phantoms(BUNDLE, str(root / "made"), cases=3, seed=9, shape=(32, 38, 30), spacing=(6.0, 6.0, 6.0))
    for number, case in enumerate(sorted((root / "made").iterdir())):
        part = "Ts" if number == 2 else "Tr"
        stacked(case, root / f"Task01/images{part}/BRATS_{number:03d}.nii.gz", order=DECATHLON)
        if part == "Tr":
            label = nibabel.load(case / f"{case.name}_seg.nii.gz")
            values = np.array([0, 2, 1, 0, 3], np.uint8)[np.asarray(label.dataobj)]
            path = root / f"Task01/labelsTr/BRATS_{number:03d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    (root / "Task01/dataset.json").write_text(json.dumps({"modality": MODALITY}))
    return root / "Task01"


@pytest.fixture
def folder(tiny_weights: NamedPath, tmp_path: Path) -> Path:
    copy(tiny_weights(BUNDLE), tmp_path / "run/models")
    return tmp_path / "run"


@pytest.mark.gate
def test_stages_chain_by_file_names(phantoms: NamedPath, decathlon: Path, tmp_path: Path) -> None:
    """From an empty folder of weights and two data sets in one list to a student that knew neither of them whole."""
    path = make_datalist(
        str(tmp_path / "list.json"),
        labelled=str(phantoms(BUNDLE)),
        decathlon=str(decathlon),
        unlabelled=str(decathlon / "imagesTs"),
    )
    common: dict[str, Any] = {
        "data": Path("nowhere"),
        "folder": tmp_path / "run",
        "datalist": str(path),
        "max_epochs": 1,
    }
    for stage in ("resunet", "cascaded", "unet"):
        run(BUNDLE, stage, **common)
    annotations = str(tmp_path / "run/pseudo")
    run(BUNDLE, "annotate", data=path, folder=tmp_path / "run", output_dir=annotations)
    run(BUNDLE, "train", **common, pseudo_labels=f"{annotations}/datalist.json")
    left = {file.name for file in (tmp_path / "run/models").iterdir()}
    teachers = ("teacher_resunet", "teacher_cascaded", "teacher_unet")
    states = {f"{name}_training_state.pt" for name in teachers} | {"training_state.pt"}
    assert left == {f"{name}.pt" for name in teachers} | {"model.pt"} | states
    state = load(tmp_path / "run/models/training_state.pt")
    assert state["trainer"]["iteration"] == 4 + 2 + 1  # BraTS, Decathlon, annotated
    (annotated,) = json.loads((tmp_path / "run/pseudo/datalist.json").read_text())["training"]
    assert annotated["stack"] == list(DECATHLON)
    assert array(tmp_path / "run/pseudo" / annotated["label"]).shape == array(annotated["image"]).shape[:3]


def test_volume_of_sequences_gives_the_mask_of_the_files(phantoms: NamedPath, folder: Path, tmp_path: Path) -> None:
    case = sorted(phantoms(BUNDLE).iterdir())[0]
    stacked(case, tmp_path / f"stack/{case.name}.nii.gz", order=SEQUENCES)
    run(BUNDLE, "inference", data=tmp_path / "stack", folder=folder, output_dir=str(tmp_path / "one"))
    run(BUNDLE, "inference", data=case, folder=folder, output_dir=str(tmp_path / "many"))
    one, many = (next((tmp_path / name).rglob("*_tumour.nii.gz")) for name in ("one", "many"))
    np.testing.assert_array_equal(array(one), array(many))


def test_saved_probabilities_are_a_member_of_an_ensemble(phantoms: NamedPath, folder: Path, tmp_path: Path) -> None:
    """The student's own probabilities, as files, annotate what its weights as a network do, but for rounding."""
    case = sorted(phantoms(BUNDLE).iterdir())[0]
    out = str(tmp_path / "soft")
    run(BUNDLE, "inference", data=case, folder=folder, output_dir=out, save_probabilities=True)
    (soft,) = (tmp_path / "soft").rglob("*_probabilities.nii.gz")
    written = array(soft)
    assert written.shape == (*array(next(case.glob("*_t1.nii.gz"))).shape, 3)
    assert written.dtype == np.uint8
    ensemble: dict[str, Any] = {
        "data": case,
        "folder": folder,
        "save_probabilities": True,
        "output_dir": str(tmp_path / "mean"),
    }
    run(BUNDLE, "ensemble_inference", **ensemble)
    (mean,) = (tmp_path / "mean").rglob("*_probabilities.nii.gz")
    assert array(mean).shape == written.shape
    assert (array(mean)[..., 0] >= array(mean)[..., 1]).all()
    file = {
        "_target_": "lachinov_distillation.ensemble.FileMember",
        "name": "student",
        "files": str(soft).replace(case.name + "_prob", "{case}_prob"),
        "predicts": "regions",
    }
    annotate: dict[str, Any] = {"data": case, "folder": folder}
    run(BUNDLE, "annotate", **annotate, members=[file], output_dir=str(tmp_path / "file"))
    network: dict[str, Any] = {"members": ["@resunet"], "resunet::weights": str(folder / "models/model.pt")}
    run(BUNDLE, "annotate", **annotate, **network, output_dir=str(tmp_path / "network"))
    one, other = (
        array(tmp_path / name / case.name / f"{case.name}_soft.nii.gz").astype(int) for name in ("file", "network")
    )
    assert other.max() > 50
    assert abs(one - other).max() <= 2
    label, again = (array(tmp_path / n / case.name / f"{case.name}_label.nii.gz") for n in ("file", "network"))
    assert (label != again).mean() < 0.01


@pytest.mark.parametrize("workflow", ["ensemble_inference", "ensemble_evaluate", "annotate"])
def test_absent_file_of_a_member_is_named_before_the_first_case(
    workflow: str, phantoms: NamedPath, folder: Path, tmp_path: Path
) -> None:
    file = {
        "_target_": "lachinov_distillation.ensemble.FileMember",
        "name": "other",
        "files": f"{tmp_path}/{{case}}.nii.gz",
        "predicts": "labels",
    }
    with pytest.raises(RuntimeError) as caught:
        run(BUNDLE, workflow, data=phantoms(BUNDLE), folder=folder, members=["@unet", file])
    message = str(caught.value.__cause__)
    assert re.search(r"PHANTOM_00\d\.nii\.gz: prediction of member other is missing", message)
    assert not (folder / "eval").exists()


def test_student_of_one_sequence(phantoms: NamedPath, tmp_path: Path) -> None:
    """Other files are not there."""
    data = copy(phantoms(BUNDLE), tmp_path / "data")
    for name in ("t1", "t1ce", "t2"):
        for file in data.rglob(f"*_{name}.nii.gz"):
            file.unlink()
    for stage in ("train", "evaluate", "inference"):
        epochs = {"max_epochs": 1} if stage == "train" else {}
        run(BUNDLE, stage, data=data, folder=tmp_path / "run", sequences=["flair"], **epochs)
    assert load(tmp_path / "run/models/model.pt")["encoder.0.0.conv.weight"].shape[1] == 1


def test_case_without_tumour_trains_and_is_scored(phantoms: NamedPath, tmp_path: Path) -> None:
    data = copy(phantoms(BUNDLE), tmp_path / "data")
    for path in data.rglob("*_seg.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    run(BUNDLE, "train", data=data, folder=tmp_path / "run", max_epochs=1)
    assert all(torch.isfinite(value).all() for value in load(tmp_path / "run/models/model.pt").values())
    run(BUNDLE, "evaluate", data=data, folder=tmp_path / "run")
    with (tmp_path / "run/eval/metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    (mask,) = (tmp_path / "run/eval/predictions").rglob("*_tumour.nii.gz")
    assert float(row["dice_WT"]) == (0.0 if array(mask).any() else 1.0)
