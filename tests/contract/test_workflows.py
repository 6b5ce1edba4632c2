"""Every workflow of every bundle on phantoms, from the first training stage to a mask on the scan's own grid."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.conftest import NAMES, NamedPath, each_bundle, label_values, recipe, workflows
from tests.support.runs import (
    IDS,
    cases,
    copy,
    each_variant,
    network_of,
    prediction,
    run,
    run_id,
    scan_files,
    stages,
    stem,
)

OTHERS = [(bundle, name) for bundle in NAMES for name in workflows(bundle) if run_id(bundle, name) not in IDS]
USES = [(bundle, name) for bundle in NAMES for kind in IDS[:2] for name in stages(bundle, kind)]
Results = Callable[[str, str], Path]
OnGrid = Callable[[str, str], tuple[Path, Path]]
Grid = tuple[NDArray[Any], NDArray[Any]]
read = LoadImage(image_only=True)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".nii.gz", ".nrrd")))


@pytest.fixture(scope="module")
def results(phantoms: NamedPath, trained: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Where an evaluation or inference with the `trained` weights left its results; read only."""

    @cache
    def folder(bundle: str, stage: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_{stage}")
        run(bundle, stage, data=phantoms(bundle), folder=trained(bundle), output_dir=str(target))
        return target

    return folder


@pytest.mark.parametrize(("bundle", "stage"), USES)
def test_training_then(bundle: str, stage: str, phantoms: NamedPath, trained: NamedPath, results: Results) -> None:
    """Evaluation and inference load what training left; both end in a row per case and a mask on the scan's grid."""
    data, evaluating = phantoms(bundle), run_id(bundle, stage) == "evaluating"
    split = cases(bundle, data)
    expected = split["validation"] if evaluating else split["training"] + split["validation"]
    found = results(bundle, stage)
    rows = table(found / ("metrics.csv" if evaluating else "report.csv"))
    assert sorted(row["case"] for row in rows) == sorted(case["case"] for case in expected)
    assert len([path for path in volumes(found) if "_unc_" not in path.name]) == len(expected)
    for case in expected:
        mask, scan = read(prediction(found, case, data=data)), read(case["image"])
        assert mask.shape == scan.shape
        assert torch.allclose(mask.affine, scan.affine, atol=1e-4)
        assert set(mask.unique().tolist()) <= label_values(bundle)


@each_bundle
def test_evaluation_agrees_with_its_masks(
    bundle: str, phantoms: NamedPath, trained: NamedPath, results: Results
) -> None:
    """The Dice of each row is that of the saved mask and the label file; that of two empty masks is 1."""
    data, found = phantoms(bundle), results(bundle, "evaluate")
    rows = {row["case"]: row for row in table(found / "metrics.csv")}
    for case in cases(bundle, data)["validation"]:
        mask, label = read(prediction(found, case, data=data)), read(case["label"])
        for column, (values, stored) in recipe(bundle)["dice"].items():
            predicted, true = torch.isin(mask, torch.tensor(values)), torch.isin(label, torch.tensor(stored))
            sizes = float(predicted.sum() + true.sum())
            expected = 2 * float((predicted & true).sum()) / sizes if sizes else 1.0
            assert float(rows[case["case"]][column]) == pytest.approx(expected)


@each_bundle
def test_evaluation_repeats(
    bundle: str, phantoms: NamedPath, trained: NamedPath, results: Results, tmp_path: Path
) -> None:
    run(bundle, "evaluate", data=phantoms(bundle), folder=trained(bundle), output_dir=str(tmp_path))
    first = results(bundle, "evaluate") / "metrics.csv"
    assert (tmp_path / "metrics.csv").read_bytes() == first.read_bytes()


@pytest.mark.parametrize(("bundle", "workflow"), OTHERS)
def test_further_workflow(bundle: str, workflow: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """What is neither training, evaluation nor inference writes its outputs."""
    copy(trained(bundle) / "models", tmp_path / "models")
    run(bundle, workflow, data=phantoms(bundle), folder=tmp_path)
    for name in recipe(bundle)["workflows"][workflow]["outputs"]:
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.gate
@each_variant
def test_variant_changes_every_weight(
    bundle: str, stage: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """Of the stages that differ from another in settings only; the others are tested with their resumption."""
    copy(tiny_weights(bundle), tmp_path / "models")
    networks = []
    for epochs in (1, 2):
        run(bundle, stage, data=phantoms(bundle), folder=tmp_path, max_epochs=epochs)
        networks.append(network_of(tmp_path))
    assert [name for name, value in networks[0].items() if torch.equal(value, networks[1][name])] == []


def mirrored(scan: NDArray[Any], affine: NDArray[Any]) -> Grid:
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[:3, 3] = scan.shape[0] - 1, 0, scan.shape[2] - 1
    return scan[::-1, :, ::-1], affine @ flip


def permuted(scan: NDArray[Any], affine: NDArray[Any]) -> Grid:
    return scan.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]


def oblique(scan: NDArray[Any], affine: NDArray[Any]) -> Grid:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zx", (20, 10), degrees=True).as_matrix()
    turn[:3, 3] = 300, -40, 7
    return scan, turn @ affine


GRIDS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Grid]] = {
    "plain": lambda scan, affine: (scan, affine),
    "mirrored": mirrored,
    "permuted": permuted,
    "oblique": oblique,
    "all": lambda scan, affine: oblique(*permuted(*mirrored(scan, affine))),
}


GRIDS_OF = [(bundle, name) for bundle in NAMES for name in recipe(bundle)["grids"]["names"]]


@pytest.fixture(scope="module")
def on_grids(phantoms: NamedPath, trained: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> OnGrid:
    """One scan as NIfTI of odd size and anisotropic spacing, stored in a certain way, and its mask."""

    @cache
    def pair(bundle: str, name: str) -> tuple[Path, Path]:
        target = tmp_path_factory.mktemp(f"{bundle}_{name}")
        case = cases(bundle, phantoms(bundle))["validation"][0]
        source = Path(case["image"])
        folder = copy(source.parent, target / "data" / source.parent.relative_to(phantoms(bundle)))
        affine = np.diag([*np.multiply(recipe(bundle)["grids"]["spacing"], (-1, -1, 1)), 1.0])
        for scan in scan_files(bundle, case):
            (folder / scan.name).unlink()
            stored = GRIDS[name](read(scan).numpy()[:-5, :-13, :23], affine)
            nibabel.save(nibabel.Nifti1Image(*stored), folder / f"{stem(scan)}.nii.gz")
        file = folder / f"{stem(source)}.nii.gz"
        run(bundle, "inference", data=target / "data", folder=trained(bundle), output_dir=str(target / "masks"))
        return file, prediction(target / "masks", {**case, "image": str(file)}, data=target / "data")

    return pair


@pytest.mark.parametrize(("bundle", "name"), GRIDS_OF)
def test_mask_does_not_depend_on_how_the_scan_is_stored(bundle: str, name: str, on_grids: OnGrid) -> None:
    """Stored otherwise, a scan gets the mask of the plain one, stored like the scan."""
    (scan, mask), (_, plain) = (tuple(map(nibabel.load, on_grids(bundle, grid))) for grid in (name, "plain"))
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-3)
    expected, _ = GRIDS[name](plain.get_fdata(), np.eye(4))
    share = np.mean(expected > 0)
    assert 0 < share < 1
    assert np.mean(mask.get_fdata() != expected) < 1e-3 * share
