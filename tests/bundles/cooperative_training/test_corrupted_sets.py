"""The command that writes corrupted test sets: grids, labels, manifests, resuming, rejections, a real patient."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, Spacing

from cooperative_training.artefacts import ARTEFACTS, make_artefact
from cooperative_training.checks import check_stacks
from cooperative_training.corruption import cases_of, corrupt
from cooperative_training.data import evaluation_cases, read_split
from cooperative_training.shared.validation import InputError, check_cases
from tools import REPO
from tools.data.phantoms import write_volume

CONFIG = str(REPO / "bundles/cooperative_training_acdc_mri/configs/corrupt.yaml")
SETTINGS: dict[str, dict[str, Any]] = ConfigParser.load_config_files(CONFIG)["settings"]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two re-organised patients: one on the network's grid, one on a coarser grid."""
    folder = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(1)
    for name, shape, spacing in (("001", (30, 26, 4), 1.36719), ("002", (22, 24, 3), 1.7)):
        for frame in ("ED", "ES"):
            label = np.zeros(shape, np.uint8)
            label[8:16, 8:16], label[10:14, 10:14] = 2, 3
            image = rng.integers(50, 900, shape).astype(np.int16)
            for kind, volume in (("img", image), ("seg", label)):
                write_volume(folder / name / f"{frame}_{kind}.nii.gz", volume, spacing=(spacing, spacing, 8.0))
    return folder


Run = Callable[..., Path]


@pytest.fixture
def run(patients: Path, tmp_path: Path) -> Run:
    def start(**overrides: Any) -> Path:
        given = {
            "folder": "sets",
            "dataset_dir": str(patients),
            "draws": 1,
            "patch_size": [24, 24],
            "num_workers": 0,
        } | overrides
        output = tmp_path / str(given.pop("folder"))
        monai.bundle.run("corrupt", config_file=CONFIG, output_dir=str(output), logging_file=False, **given)
        return output

    return start


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def rejection(run: Run, **overrides: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        run(**overrides)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    assert error is not None, f"no InputError led to {caught.value!r}"
    return str(error)


def test_sets_keep_grid_and_label(patients: Path, run: Run) -> None:
    sets = run(draws=2)
    assert sorted(path.name for path in sets.iterdir()) == sorted(ARTEFACTS)
    for name in ARTEFACTS:
        assert sorted(p.name for p in (sets / name).iterdir() if p.is_dir()) == ["001_0", "001_1", "002_0", "002_1"]
        for draw in (0, 1):
            given, copy = patients / "001", sets / name / f"001_{draw}"
            for kind in ("img", "seg"):
                before, after = nib.load(given / f"ES_{kind}.nii.gz"), nib.load(copy / f"ES_{kind}.nii.gz")
                assert after.shape == before.shape
                np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
            np.testing.assert_array_equal(before.get_fdata(), after.get_fdata())
            coarse = nib.load(sets / name / f"002_{draw}/ED_seg.nii.gz")
            np.testing.assert_allclose(coarse.header.get_zooms(), (1.36719, 1.36719, 8), atol=1e-4)
            assert coarse.shape == (27, 30, 3)
            assert set(np.unique(coarse.get_fdata())) == {0, 2, 3}
    first, second = (nib.load(sets / "RandomSpike" / f"001_{j}" / "ED_img.nii.gz").get_fdata() for j in (0, 1))
    assert abs(first - second).max() > 0.1
    cases = cases_of(read_split(sets / "RandomMotion"), None)
    check_cases([cases], label_values=[[0, 1, 2, 3]])


def test_manifest_tells_seed_and_parameters(run: Run) -> None:
    sets = run()
    for name in ARTEFACTS:
        manifest = json.loads((sets / name / "manifest.json").read_text())
        assert manifest["settings"] == SETTINGS[name]
        assert manifest["versions"].keys() == {"torchio", "torch", "monai"}
        assert list(manifest["volumes"]) == ["001_0/ED", "001_0/ES", "002_0/ED", "002_0/ES"]
        entry = manifest["volumes"]["002_0/ES"]
        assert entry["seed"] == zlib.crc32(f"{name}/002_0/ES".encode())
        artefact = make_artefact(name, SETTINGS[name])
        _, drawn = corrupt(MetaTensor(torch.rand(1, 27, 30, 3)), artefact, patch_size=(24, 24), seed=entry["seed"])
        assert entry["parameters"] == drawn


def test_own_grid_on_request(patients: Path, run: Run) -> None:
    sets = run(pixdim=[-1, -1], corruptions=["RandomBias"])
    for kind in ("img", "seg"):
        before, after = (nib.load(f / f"ED_{kind}.nii.gz") for f in (patients / "002", sets / "RandomBias/002_0"))
        assert after.shape == before.shape
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    np.testing.assert_array_equal(before.get_fdata(), after.get_fdata())
    assert sorted(path.name for path in sets.iterdir()) == ["RandomBias"]


def test_resuming_writes_what_is_missing_and_the_same(run: Run) -> None:
    sets = run()
    lost = [sets / "RandomMotion/001_0/ED_img.nii.gz", sets / "RandomSpike/002_0/ES_seg.nii.gz"]
    content = [nib.load(path).get_fdata() for path in lost]
    before = stamps(sets)
    for path in lost:
        path.unlink()
    run()
    after = stamps(sets)
    again = {str(path.with_name(f"{path.name[:2]}_{kind}.nii.gz")) for path in lost for kind in ("img", "seg")}
    assert {path for path in after if after[path] != before[path]} == again
    for path, voxels in zip(lost, content, strict=True):
        np.testing.assert_array_equal(nib.load(path).get_fdata(), voxels)
    assert not list(sets.rglob("*partial*"))
    more = run(draws=2)
    assert {path: time for path, time in stamps(more).items() if path in after} == after
    assert len(stamps(more)) == 2 * len(after)


def test_processes_write_the_same(run: Run) -> None:
    alone, shared = run(corruptions=["RandomSpike"]), run(corruptions=["RandomSpike"], num_workers=2, folder="shared")
    for path in alone.rglob("*.nii.gz"):
        np.testing.assert_array_equal(
            nib.load(path).get_fdata(), nib.load(shared / path.relative_to(alone)).get_fdata()
        )
    assert (alone / "RandomSpike/manifest.json").read_text() == (shared / "RandomSpike/manifest.json").read_text()


def test_other_settings_do_not_mix(run: Run) -> None:
    sets = run(corruptions=["RandomSpike"])
    before = stamps(sets)
    message = rejection(run, **{"settings::RandomSpike::intensity": [1, 2]})
    assert "made with other settings" in message
    assert stamps(sets) == before
    assert "made with other patch_size" in rejection(run, patch_size=[16, 16])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"settings::RandomMotion::degrees": [-400, 30]}, "settings::RandomMotion::degrees"),
        ({"corruptions": ["RandomBlur"]}, "RandomBlur"),
        ({"draws": 0}, "draws"),
        ({"subset": "tests"}, "subset"),
    ],
)
def test_bad_setting_writes_nothing(run: Run, tmp_path: Path, overrides: dict[str, Any], named: str) -> None:
    assert named in rejection(run, **overrides)
    assert not list(tmp_path.iterdir())


def test_real_patient_is_read_by_the_pipeline_as_it_was_corrupted(real_data: Path, tmp_path: Path) -> None:
    for patient in ("patient001", "patient041"):
        shutil.copytree(real_data / "acdc" / patient, tmp_path / "acdc" / patient)
    monai.bundle.run(
        "corrupt",
        config_file=CONFIG,
        dataset_dir=str(tmp_path / "acdc"),
        output_dir=str(tmp_path / "sets"),
        draws=1,
        num_workers=0,
        logging_file=False,
    )
    split = read_split(tmp_path / "acdc")
    folders = {name: str(tmp_path / "sets" / name) for name in ARTEFACTS}
    cases = evaluation_cases(split, test_sets=folders, subset="validation")
    assert len(cases) == 2 * 5
    check_cases([cases], label_values=[[0, 1, 2, 3]])
    check_stacks([cases])
    load = Compose(
        [LoadImage(image_only=True, ensure_channel_first=True), Spacing((1.36719, 1.36719, -1), mode="bilinear")]
    )
    for case in cases[2:]:
        stored = nib.load(case["image"]).get_fdata()
        np.testing.assert_array_equal(load(case["image"])[0].numpy(), stored.astype(np.float32))
        heart = nib.load(case["label"]).get_fdata() > 0
        assert (stored[heart] > 0).mean() > 0.99
        spread = [np.ptp(stored[..., z]) for z in range(stored.shape[-1])]
        np.testing.assert_allclose(spread, 1, atol=1e-4)
