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
from tests.runs import (
    IDS,
    cases,
    copy,
    each_stage,
    network_of,
    prediction,
    run,
    run_id,
    same,
    scan_files,
    stages,
    stem,
)

OTHERS = [(bundle, name) for bundle in NAMES for name in workflows(bundle) if run_id(bundle, name) not in IDS]
OnGrid = Callable[[str, str], tuple[Path, Path]]
Grid = tuple[NDArray[Any], NDArray[Any]]
read = LoadImage(image_only=True)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".nii.gz", ".nrrd")))


@pytest.fixture(scope="module")
def trained(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """Folder of a bundle whose stages were all trained for an epoch, one after the other."""

    @cache
    def folder(bundle: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_trained")
        copy(tiny_weights(bundle), target / "models")
        for stage in stages(bundle, "training"):
            run(bundle, stage, data=phantoms(bundle), folder=target, max_epochs=1, restart=True)
        return target

    return folder


@pytest.mark.parametrize("kind", ["evaluating", "inference"])
@each_bundle
def test_training_then(bundle: str, kind: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """Evaluation and inference load what training left; both end in a row per case and a mask on the scan's grid."""
    data = phantoms(bundle)
    split = cases(bundle, data)
    of_kind = split["validation"] if kind == "evaluating" else split["training"] + split["validation"]
    for stage in stages(bundle, kind):
        results = tmp_path / stage
        run(bundle, stage, data=data, folder=trained(bundle), output_dir=str(results))
        rows = table(results / ("metrics.csv" if kind == "evaluating" else "report.csv"))
        assert sorted(row["case"] for row in rows) == sorted(case["case"] for case in of_kind)
        assert len([path for path in volumes(results) if "_unc_" not in path.name]) == len(of_kind)
        for case in of_kind:
            mask, scan = read(prediction(results, case, data=data)), read(case["image"])
            assert mask.shape == scan.shape
            assert torch.allclose(mask.affine, scan.affine, atol=1e-4)
            assert set(mask.unique().tolist()) <= label_values(bundle)


@each_bundle
def test_evaluation_agrees_with_its_masks(bundle: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """The Dice of each row is that of the saved mask and the label file; that of two empty masks is 1."""
    data = phantoms(bundle)
    run(bundle, "evaluate", data=data, folder=trained(bundle), output_dir=str(tmp_path))
    rows = {row["case"]: row for row in table(tmp_path / "metrics.csv")}
    for case in cases(bundle, data)["validation"]:
        mask, label = read(prediction(tmp_path, case, data=data)), read(case["label"])
        for column, (values, stored) in recipe(bundle)["dice"].items():
            found, true = torch.isin(mask, torch.tensor(values)), torch.isin(label, torch.tensor(stored))
            sizes = float(found.sum() + true.sum())
            expected = 2 * float((found & true).sum()) / sizes if sizes else 1.0
            assert float(rows[case["case"]][column]) == pytest.approx(expected)


@pytest.mark.parametrize(("bundle", "workflow"), OTHERS)
def test_further_workflow(bundle: str, workflow: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """What is neither training, evaluation nor inference leaves the files that it is there for."""
    copy(trained(bundle) / "models", tmp_path / "models")
    run(bundle, workflow, data=phantoms(bundle), folder=tmp_path)
    for name in recipe(bundle)["workflows"][workflow]["leaves"]:
        assert (tmp_path / name).stat().st_size > 0


@each_stage
def test_training_reaches_every_weight(
    bundle: str, stage: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path
) -> None:
    """An epoch changes every parameter: none is left out of the optimizer or cut off from the loss."""
    copy(tiny_weights(bundle), tmp_path / "models")
    networks = []
    for epochs in (1, 2):
        run(bundle, stage, data=phantoms(bundle), folder=tmp_path, max_epochs=epochs)
        networks.append(network_of(tmp_path))
    assert [name for name, value in networks[0].items() if torch.equal(value, networks[1][name])] == []


@each_stage
def test_seed(bundle: str, stage: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """A seed fixes the run, another seed gives another one, and validation has no part in it."""
    networks = {}
    for name, seed, interval in (("first", 1, 1), ("again", 1, 3), ("other", 2, 1)):
        copy(tiny_weights(bundle), tmp_path / name / "models")
        given = {"max_epochs": 2, "seed": seed, "val_interval": interval}
        run(bundle, stage, data=phantoms(bundle), folder=tmp_path / name, **given)
        networks[name] = network_of(tmp_path / name)
    assert same(networks["first"], networks["again"])
    assert not same(networks["first"], networks["other"])


@each_bundle
def test_evaluation_repeats(bundle: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(bundle, "evaluate", data=phantoms(bundle), folder=trained(bundle), output_dir=str(tmp_path / name))
    assert (tmp_path / "one/metrics.csv").read_bytes() == (tmp_path / "two/metrics.csv").read_bytes()


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
