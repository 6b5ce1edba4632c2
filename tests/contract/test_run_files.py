"""A run is the same run only if its files are: weights that it learns from, every sequence of a case."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from tests.conftest import NAMES, NamedPath, config_files, package, small
from tests.support.runs import cases, copy, epochs_of, load, rejection, run, scan_files
from tools import REPO

VNET, HADNET, LACHINOV = (next(name for name in NAMES if word in name) for word in ("vnet", "had", "lach"))
identity = importlib.import_module(f"{package(VNET)}.shared.identity")  # identical in every bundle

# Bundle, overlays, settings, and the ids of files beside the cases whose content counts.
LEARNT_FROM: dict[str, tuple[str, tuple[str, ...], dict[str, Any], list[str]]] = {
    "distillation": (HADNET, (), {}, ["start", "teacher_weights"]),
    "without start": (HADNET, (), {"start": None}, ["teacher_weights"]),
    "teacher": (HADNET, ("pretrain",), {"type": "teacher"}, []),
    "student": (HADNET, ("pretrain",), {}, []),
    "reference": (VNET, ("reference",), {}, ["locator_weights", "intensity_file"]),
    "crops": (VNET, ("reference",), {"locate": False}, ["intensity_file"]),
    "own weights": (VNET, (), {"start": "@weights"}, []),
    "other weights": (VNET, (), {"start": "$@ckpt_dir + '/locator.pt'"}, ["start"]),
}


@pytest.mark.parametrize("name", LEARNT_FROM)
def test_what_a_run_learns_from(name: str, tiny_weights: NamedPath) -> None:
    """Files that the training reads, and none that it writes: it would not go on."""
    bundle, overlays, given, expected = LEARNT_FROM[name]
    paths = [f"{REPO}/bundles/{bundle}/configs/{stem}.yaml" for stem in ("train", *overlays)]
    workflow = ConfigWorkflow(
        paths, workflow_type="train", logging_file=False, ckpt_dir=str(tiny_weights(bundle)), **given
    )
    assert [file for file, digest in identity.digests_of(workflow).items() if "bytes, sha256" in digest] == expected


def test_another_teacher_is_another_run(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """So are other weights to start from, wherever they lie; weights that are gone since are not needed."""
    models = copy(tiny_weights(HADNET), tmp_path / "models")
    given: dict[str, Any] = {"data": phantoms(HADNET), "folder": tmp_path}
    run(HADNET, "train", max_epochs=1, **given)
    for name, file in (("teacher_weights", "teacher_model.pt"), ("start", "pretrained_student.pt")):
        content = (models / file).read_bytes()
        torch.save({key: value * 1.01 for key, value in load(models / file).items()}, models / file)
        (line,) = rejection(HADNET, "train", max_epochs=2, **given).splitlines()[2:-1]
        assert line.strip().startswith(f"{name}: {len(content)} bytes, sha256 ")
        (models / file).write_bytes(content)
    (models / "pretrained_student.pt").rename(models / "elsewhere.pt")
    run(HADNET, "train", max_epochs=2, **given)
    run(HADNET, "train", max_epochs=3, **given | {"start": str(models / "elsewhere.pt")})
    assert epochs_of(models) == 3


@pytest.mark.parametrize("bundle", [HADNET, LACHINOV])
def test_every_file_of_a_case_counts(bundle: str, phantoms: NamedPath) -> None:
    """Also those of the sequences that no case names."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train")))
    parser.update({**small(bundle, "train"), "dataset_dir": str(phantoms(bundle))})
    of_run = parser.get_parsed_content("identity")
    found = identity.files_of(of_run.splits, of_run.beside)
    for split, every in cases(bundle, phantoms(bundle)).items():
        for case in every:
            expected = [*scan_files(bundle, case), Path(case["label"])]
            assert {line.partition(" ")[0] for line in found[split][case["case"]]} == {path.name for path in expected}
