"""Annotation by an ensemble with the shipped configs: resumed, complete files only, and what the student gets of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine

from lachinov_distillation.annotation import Annotation
from lachinov_distillation.ensemble import Ensemble, FileMember
from lachinov_distillation.shared.validation import InputError
from tests.conftest import NamedPath
from tests.support.runs import copy, network_of, run
from tools.data.phantoms import phantoms as make_phantoms

BUNDLE = "lachinov_distillation_brats_mri"
KINDS = ("label", "soft", "disagreement")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans whose names are none of the labelled ones; read only."""
    folder = tmp_path_factory.mktemp("unlabelled")
    make_phantoms(BUNDLE, str(folder / "made"), cases=3, seed=7, shape=(32, 38, 30), spacing=(6.0, 6.0, 6.0))
    for case in sorted((folder / "made").iterdir()):
        target = folder / "scans" / case.name.replace("PHANTOM", "NEW")
        target.mkdir(parents=True)
        for file in case.iterdir():
            if "_seg" not in file.name:
                (target / file.name.replace("PHANTOM", "NEW")).write_bytes(file.read_bytes())
    return folder / "scans"


@pytest.fixture(scope="module")
def annotated(unlabelled: Path, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of an uninterrupted annotation; read only."""
    folder = tmp_path_factory.mktemp("annotated")
    copy(tiny_weights(BUNDLE), folder / "models")
    run(BUNDLE, "annotate", data=unlabelled, folder=folder)
    return folder


def reason(error: BaseException | None) -> str:
    """What is behind MONAI's wrappers: all messages of the chain."""
    return "" if error is None else f"{error}\n{reason(error.__cause__)}"


def volume(folder: Path, case: str, kind: str) -> Any:
    return nibabel.load(folder / "eval" / case / f"{case}_{kind}.nii.gz")


def test_every_scan_gets_its_maps_on_its_grid_and_its_line_in_the_datalist(annotated: Path, unlabelled: Path) -> None:
    listed = json.loads((annotated / "eval/datalist.json").read_text())["training"]
    assert [case["case"] for case in listed] == sorted(path.name for path in unlabelled.iterdir())
    for case in listed:
        scan = nibabel.load(case["image"])
        found = {kind: volume(annotated, case["case"], kind) for kind in KINDS}
        assert all(np.array_equal(image.affine, scan.affine) for image in found.values())
        label, soft, disagreement = (np.asarray(found[kind].dataobj) for kind in KINDS)
        assert label.shape == disagreement.shape == scan.shape
        assert soft.shape == (*scan.shape, 3)
        assert label.dtype == soft.dtype == np.uint8
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert (soft[..., 0] >= soft[..., 1]).all()
        assert (soft[..., 1] >= soft[..., 2]).all()
        outside = np.asarray(scan.dataobj) == 0
        corner = (slice(0, 2),) * 3
        assert outside[corner].all()
        assert not disagreement[corner].any()
        assert 0 < disagreement.max() <= 2 / 3
        assert case["label_source"] == "ensemble"


def test_interrupted_annotation_goes_on_without_doing_a_case_twice(
    annotated: Path, unlabelled: Path, tmp_path: Path
) -> None:
    copy(annotated, tmp_path / "again")
    first, second, third = sorted(path.name for path in unlabelled.iterdir())
    results = tmp_path / "again/eval"
    (results / second / f"{second}_label.nii.gz").unlink()  # its other maps are there: the run died in between
    (results / "datalist.json").unlink()
    kept = {name: (results / name / f"{name}_soft.nii.gz").stat().st_mtime_ns for name in (first, second, third)}
    run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path / "again")
    for name in (first, third):
        assert (results / name / f"{name}_soft.nii.gz").stat().st_mtime_ns == kept[name]
    assert (results / second / f"{second}_soft.nii.gz").stat().st_mtime_ns > kept[second]
    for kind in KINDS:
        one, other = (np.asarray(volume(folder, second, kind).dataobj) for folder in (annotated, tmp_path / "again"))
        assert np.array_equal(one, other)
    assert (results / "datalist.json").read_text() == (annotated / "eval/datalist.json").read_text()


def test_finished_annotation_is_only_listed_anew(annotated: Path, unlabelled: Path, tmp_path: Path) -> None:
    copy(annotated, tmp_path / "again")
    (tmp_path / "again/eval/datalist.json").unlink()
    run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path / "again")
    assert (tmp_path / "again/eval/datalist.json").is_file()


def test_folder_of_another_ensemble_is_refused(annotated: Path, unlabelled: Path, tmp_path: Path) -> None:
    copy(annotated, tmp_path / "again")
    weights = torch.load(tmp_path / "again/models/teacher_unet.pt", weights_only=True)
    weights[next(iter(weights))] += 1
    torch.save(weights, tmp_path / "again/models/teacher_unet.pt")
    with pytest.raises(RuntimeError) as caught:
        run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path / "again")
    assert "the folder is of another ensemble or other settings" in reason(caught.value)


def test_bad_member_stops_the_run_before_the_first_case(
    tiny_weights: NamedPath, unlabelled: Path, tmp_path: Path
) -> None:
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    (tmp_path / "models/teacher_unet.pt").write_bytes(b"damaged")
    with pytest.raises(RuntimeError) as caught:
        run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path)
    assert "teacher_unet.pt: cannot be read as a file of tensors" in reason(caught.value)
    assert not (tmp_path / "eval").exists()


def test_full_disk_leaves_no_partial_file_and_the_case_is_done_later(
    tiny_weights: NamedPath, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(tiny_weights(BUNDLE), tmp_path / "models")
    save, second = nibabel.save, sorted(path.name for path in unlabelled.iterdir())[1]

    def full(image: Any, path: Any) -> None:
        Path(path).write_bytes(b"half a file")
        if second in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(RuntimeError) as caught:
        run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path)
    assert f"1 of 3 cases failed: {second} (RuntimeError: OSError: [Errno 28] No space left" in reason(caught.value)
    files = [path.name for path in (tmp_path / "eval").rglob("*") if path.is_file()]
    found = sorted(name for name in files if not name.startswith("run_annotating_"))
    done = [path.name for path in sorted(unlabelled.iterdir()) if path.name != second]
    assert len(files) == len(found) + 1
    assert found == sorted(["datalist.json", "ensemble.json", *(f"{n}_{kind}.nii.gz" for n in done for kind in KINDS)])
    assert [case["case"] for case in json.loads((tmp_path / "eval/datalist.json").read_text())["training"]] == done
    monkeypatch.setattr(nibabel, "save", save)
    run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path)
    assert len(json.loads((tmp_path / "eval/datalist.json").read_text())["training"]) == 3


@pytest.mark.gate
@pytest.mark.parametrize("soft", [False, True])
def test_student_learns_from_labels_and_pseudo_labels(
    soft: bool, annotated: Path, phantoms: NamedPath, tmp_path: Path
) -> None:
    """Weights differ from those of labels alone, and soft pseudo-labels from hard ones."""
    common: dict[str, Any] = {"data": phantoms(BUNDLE), "max_epochs": 1}
    pseudo = str(annotated / "eval/datalist.json")
    run(BUNDLE, "train", folder=tmp_path / "with", pseudo_labels=pseudo, soft_labels=soft, **common)
    run(BUNDLE, "train", folder=tmp_path / "hard", pseudo_labels=pseudo, **common)
    run(BUNDLE, "train", folder=tmp_path / "alone", **common)
    state = torch.load(tmp_path / "with/models/training_state.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 4 + 3
    one, other = network_of(tmp_path / "with"), network_of(tmp_path / ("hard" if soft else "alone"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_ensemble_of_files_alone_needs_no_network(tmp_path: Path, unlabelled: Path) -> None:
    """Label maps of other programs, whose names hold the case's, annotate without a forward pass."""
    names = sorted(path.name for path in unlabelled.iterdir())
    rng = np.random.default_rng(0)
    labels = {}
    for name in names:
        scan = nibabel.load(unlabelled / name / f"{name}_t1.nii.gz")
        for program in "abc":
            labels[program, name] = rng.choice([0, 1, 2, 4], scan.shape).astype(np.uint8)
            target = tmp_path / program / f"{name}.nii.gz"
            target.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels[program, name], scan.affine), target)
    members = [
        {
            "_target_": "lachinov_distillation.ensemble.FileMember",
            "name": program,
            "files": f"{tmp_path}/{program}/{{case}}.nii.gz",
            "predicts": "labels",
        }
        for program in "abc"
    ]
    run(BUNDLE, "annotate", data=unlabelled, folder=tmp_path / "out", members=members)
    for name in names:
        votes = np.stack([(np.stack([labels[p, name] for p in "abc"]) == value).sum(0) for value in (0, 1, 2, 4)])
        found = np.asarray(volume(tmp_path / "out", name, "label").dataobj)
        assert np.array_equal(found, np.array([0, 1, 2, 4])[votes.argmax(0)])


def annotation_in(folder: Path) -> Annotation:
    cases = [{"case": name, "image": f"/data/{name}_t1.nii.gz"} for name in "abc"]
    ensemble = Ensemble([FileMember("x", "{case}.nii.gz", predicts="labels")], sequences=4)
    return Annotation(cases, output_dir=str(folder), ensemble=ensemble, settings={"soft": False})


def test_only_label_maps_count_as_done(tmp_path: Path) -> None:
    annotation = annotation_in(tmp_path)
    assert [case["case"] for case in annotation.remaining] == ["a", "b", "c"]
    for name, kind in (("a", "label"), ("b", "soft")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_{kind}.nii.gz").touch()
    assert [case["case"] for case in annotation.remaining] == ["b", "c"]


def test_case_is_not_done_if_its_scan_is_newer(tmp_path: Path) -> None:
    """The last of its sequences is replaced by a file that keeps an old date."""
    annotation = annotation_in(tmp_path)
    annotation.sequences = ["t1", "flair"]
    label = tmp_path / "a/a_label.nii.gz"
    label.parent.mkdir()
    annotation.cases = [{"case": "a", "image": str(tmp_path / "a_t1.nii.gz")}]
    Path(annotation.cases[0]["image"]).touch()
    label.touch()
    assert annotation.remaining == []
    (tmp_path / "a_flair.nii.gz").touch()
    os.utime(tmp_path / "a_flair.nii.gz", (0, 0))
    assert annotation.remaining == annotation.cases


def test_settings_are_part_of_the_mark(tmp_path: Path) -> None:
    annotation = annotation_in(tmp_path)
    annotation.start()
    annotation.start()
    annotation.settings = {"soft": True}
    with pytest.raises(InputError, match=r"ensemble\.json: the folder is of another ensemble or other settings"):
        annotation.start()


def test_datalist_is_written_when_the_engine_completes(tmp_path: Path) -> None:
    annotation = annotation_in(tmp_path)
    engine = Engine(lambda engine, batch: None)
    for name in "ac":  # b has failed
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_label.nii.gz").touch()
    annotation.attach(engine)
    engine.run([0])
    first, third = json.loads((tmp_path / "datalist.json").read_text())["training"]
    assert third["case"] == "c"
    assert first == {
        "case": "a",
        "image": "/data/a_t1.nii.gz",
        "label": "a/a_label.nii.gz",
        "label_source": "ensemble",
        "label_order": ["NCR", "ED", "ET", "ET"],
    }
