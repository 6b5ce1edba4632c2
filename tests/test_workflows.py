"""Every workflow of every bundle on phantoms, from the first training stage to a mask on the scan's own grid."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
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

from tests.conftest import NamedPath, each_bundle, recipe
from tests.runs import arguments, cases, command_line, copy, each_stage, load, network_of, run, same, stages

ATRIAL = "vnet_atrial_mri"
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
            run(bundle, stage, data=phantoms(bundle), folder=target, max_epochs=1)
        return target

    return folder


@pytest.mark.parametrize("kind", ["evaluating", "inference"])
@each_bundle
def test_training_then(bundle: str, kind: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """Evaluation and inference load what training left; both end in a row per case and a mask on the scan's grid."""
    split = cases(bundle, phantoms(bundle))
    of_kind = split["validation"] if kind == "evaluating" else split["training"] + split["validation"]
    scans = {str(case["case"]): read(case["image"]) for case in of_kind}
    for stage in stages(bundle, kind):
        results = tmp_path / stage
        run(bundle, stage, data=phantoms(bundle), folder=trained(bundle), output_dir=str(results))
        rows = table(results / ("metrics.csv" if kind == "evaluating" else "report.csv"))
        assert {row["case"] for row in rows} == set(scans)
        found = volumes(results)
        assert len(found) == len(scans)
        for path in found:
            mask, scan = read(path), scans[path.parent.name]
            assert mask.shape == scan.shape
            assert torch.allclose(mask.affine, scan.affine, atol=1e-4)
            assert set(mask.unique().tolist()) <= {0, 1}


@each_bundle
def test_evaluation_agrees_with_its_masks(bundle: str, phantoms: NamedPath, trained: NamedPath, tmp_path: Path) -> None:
    """The Dice of each row is that of the saved mask and the label file."""
    run(bundle, "evaluate", data=phantoms(bundle), folder=trained(bundle), output_dir=str(tmp_path))
    rows = {row["case"]: float(row["dice"]) for row in table(tmp_path / "metrics.csv")}
    for case in cases(bundle, phantoms(bundle))["validation"]:
        (path,) = volumes(tmp_path / "predictions" / case["case"])
        mask, label = read(path) > 0, read(case["label"]) > 0
        assert rows[case["case"]] == pytest.approx(2 * float((mask & label).sum()) / float(mask.sum() + label.sum()))


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


@pytest.fixture(scope="module")
def on_grids(phantoms: NamedPath, trained: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> NamedPath:
    """Folder with one scan as NIfTI of odd size and anisotropic spacing, stored in several ways, and its masks."""

    @cache
    def folder(bundle: str) -> Path:
        target = tmp_path_factory.mktemp(f"{bundle}_grids")
        case = cases(bundle, phantoms(bundle))["validation"][0]
        scan = read(case["image"]).numpy()[:75, :67, :23]
        for name, grid in GRIDS.items():
            file = target / "data" / name / Path(case["image"]).with_suffix(".nii.gz").name
            file.parent.mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(*grid(scan, np.diag([-4.5, -5.5, 3.0, 1.0]))), file)
        run(bundle, "inference", data=target / "data", folder=trained(bundle), output_dir=str(target / "masks"))
        return target

    return folder


@pytest.mark.parametrize("name", GRIDS)
@each_bundle
def test_mask_does_not_depend_on_how_the_scan_is_stored(bundle: str, name: str, on_grids: NamedPath) -> None:
    """Mirrored, permuted or turned in space, a scan gets the mask of the plain one, stored like the scan."""
    (path,), (plain,), (scan,) = (
        volumes(on_grids(bundle) / part) for part in (f"masks/{name}", "masks/plain", f"data/{name}")
    )
    mask = nibabel.load(path)
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == nibabel.load(scan).shape
    np.testing.assert_allclose(mask.affine, nibabel.load(scan).affine, atol=1e-3)
    array, _ = GRIDS[name](nibabel.load(plain).get_fdata(), np.eye(4))
    assert 0 < array.sum() < array.size
    assert np.mean(mask.get_fdata() != array) < 1e-3 * array.mean()


@pytest.mark.parametrize("found", [True, False])
def test_atrium_not_found(
    found: bool, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A segmentation network that marks all it sees shows what it is given: the patch, or the whole volume."""
    models = copy(tiny_weights(ATRIAL), tmp_path / "models")
    for name, bias in (("locator.pt", 100.0 if found else -100.0), ("model.pt", 100.0)):
        state = load(models / name)
        torch.save(state | {"head.conv.bias": state["head.conv.bias"] + bias}, models / name)
    caplog.set_level(logging.WARNING)
    run(ATRIAL, "inference", data=phantoms(ATRIAL), folder=tmp_path)
    for row in table(tmp_path / "eval/report.csv"):
        (path,) = volumes(tmp_path / "eval" / row["case"])
        size = int(np.prod(recipe(ATRIAL)["workflows"]["inference"]["overrides"]["patch_size"]))
        assert row["atrium_found"] == str(found)
        assert int(read(path).sum()) == (size if found else read(path).numel())
        warned = [text for text in caplog.messages if row["image"] in text and "no left atrium found" in text]
        assert len(warned) == (0 if found else 1)


@pytest.mark.slow
@each_bundle
def test_multi_gpu_training(bundle: str, phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Two processes train one network; what they leave is like what one process leaves, and can be resumed by two."""
    data = tmp_path / "data"  # a validation case for each process
    for case in phantoms(bundle).iterdir():
        for number in range(2):
            copy(case, data / f"{case.name}{number}")
    for epochs in (1, 2):
        given = arguments(bundle, "multi_gpu_train", data=data, folder=tmp_path, max_epochs=epochs)
        del given["device"]
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", *launcher, *command_line(given)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        state = load(tmp_path / "models/training_state.pt")
        assert state["trainer"]["iteration"] == epochs * state["trainer"]["epoch_length"]
    assert f"Resumed from {tmp_path / 'models/training_state.pt'} after epoch 1" in done.stdout + done.stderr
    expected, found = (load(folder / "model.pt") for folder in (tiny_weights(bundle), tmp_path / "models"))
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in expected.items()}
