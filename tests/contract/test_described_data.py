"""The same scans as an nnU-Net raw folder and as a Decathlon folder: every bundle scores them as in its own layout."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.conftest import NAMES, NamedPath, recipe
from tests.support.runs import Case, cases, copy, run, scan_files
from tools.shared.nrrd import read_nrrd

CHANNELS = {"t1": "T1w", "t1ce": "t1gd", "t2": "T2w", "flair": "FLAIR"}


def volume(path: Path) -> nibabel.nifti1.Nifti1Image:
    if path.suffix == ".nrrd":
        return nibabel.nifti1.Nifti1Image(*read_nrrd(path))
    return nibabel.nifti1.Nifti1Image.from_filename(path)


def save(path: Path, voxels: Any, like: nibabel.nifti1.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.nifti1.Nifti1Image(voxels, like.affine, like.header)
    image.set_sform(like.affine, 1)
    image.set_qform(like.affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def laid_out(bundle: str, split: Mapping[str, list[Case]], root: Path, *, raw: bool) -> None:
    """The cases as nnU-Net or the Decathlon has them; labels by other values, sequences in another order."""
    known = recipe(bundle)["described"]
    every = [case for listed in split.values() for case in listed]
    for case in every:
        channels = save_scan(bundle, case, root, raw=raw)
        drawn = volume(Path(case["label"]))
        label = np.vectorize({0: 0, **known["values"]}.get)(np.asarray(drawn.dataobj)).astype(np.uint8)
        save(root / f"labelsTr/{case['case']}.nii.gz", label, drawn)
    names = [case["case"] for case in every]
    content: dict[str, Any] = {"channel_names": channels, "file_ending": ".nii.gz", "numTraining": len(every)}
    content["labels"] = {"background": 0, **known["names"]}
    if not raw:
        training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
        content = {"modality": channels, "training": training, "test": []}
        content["labels"] = {"0": "background", **{str(value): name for name, value in known["names"].items()}}
    (root / "dataset.json").write_text(json.dumps(content))
    parts = {"train": split["training"], "val": split["validation"]}
    folds = [{part: [case["case"] for case in listed] for part, listed in parts.items()}]
    (root / "splits_final.json").write_text(json.dumps(folds))


def save_scan(bundle: str, case: Case, root: Path, *, raw: bool) -> dict[str, str]:
    """Saves a file for each sequence, or one of all; returns the names of the channels."""
    files = dict(zip(sequences(bundle, case), scan_files(bundle, case), strict=True))
    names = [name for name in CHANNELS if name in files] or [""]
    scans = [volume(files[name]) for name in names]
    arrays = [np.asarray(scan.dataobj) for scan in scans]
    stored = {case["case"]: np.squeeze(np.stack(arrays, -1))}
    if raw:
        stored = {f"{case['case']}_{number:04d}": array for number, array in enumerate(arrays)}
    for name, array in stored.items():
        save(root / f"imagesTr/{name}.nii.gz", array, scans[0])
    return {str(number): CHANNELS.get(name, "scan") for number, name in enumerate(names)}


def sequences(bundle: str, case: Case) -> list[str]:
    """Names of the files of `scan_files`."""
    names = [path.name.removeprefix(case["case"]).strip("_-").partition(".")[0] for path in scan_files(bundle, case)]
    return names if len(names) > 1 else [""]


def scores(folder: Path) -> dict[str, list[str]]:
    """Numbers in `metrics.csv` by case."""
    with (folder / "eval/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        row["case"]: [f"{float(value):.4f}" for name, value in row.items() if name[:4] in ("dice", "hd95") and value]
        for row in rows
    }


@pytest.mark.parametrize("raw", [True, False], ids=["nnunet", "decathlon"])
@pytest.mark.parametrize("bundle", NAMES)
def test_scores_are_those_of_the_own_layout(
    bundle: str, raw: bool, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    split = cases(bundle, phantoms(bundle))
    laid_out(bundle, split, tmp_path / "data", raw=raw)
    lists = {part: sorted({case.get("patient", case["case"]) for case in listed}) for part, listed in split.items()}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    found = []
    for name, data, file in (
        ("own", phantoms(bundle), tmp_path / "split.json"),
        ("other", tmp_path / "data", tmp_path / "data/splits_final.json"),
    ):
        copy(tiny_weights(bundle), tmp_path / name / "models")
        run(bundle, "evaluate", data=data, folder=tmp_path / name, split_file=str(file))
        found.append(scores(tmp_path / name))
    assert found[0] == found[1]
    assert len(found[0]) == len(split["validation"])
    shutil.rmtree(tmp_path / "other/eval")
    run(bundle, "inference", data=tmp_path / "data/imagesTr", folder=tmp_path / "other")
    assert len([path for path in (tmp_path / "other/eval").rglob("*.nii.gz") if "_unc_" not in path.name]) == sum(
        map(len, split.values())
    )


@pytest.mark.parametrize("bundle", NAMES)
def test_training_reads_it_too(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    laid_out(bundle, cases(bundle, phantoms(bundle)), tmp_path / "data", raw=True)
    copy(tiny_weights(bundle), tmp_path / "run/models")
    before = (tmp_path / "run/models/model.pt").read_bytes()
    alone = recipe(bundle)["described"].get("alone", {})
    run(bundle, "train", data=tmp_path / "data", folder=tmp_path / "run", **alone)
    assert (tmp_path / "run/models/model.pt").read_bytes() != before
