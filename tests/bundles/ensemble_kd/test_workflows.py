"""From members to a student of ensemble_kd_kits_ct: what its stages hand on to each other, on phantoms."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch

from ensemble_kd.shared.validation import InputError
from tests.conftest import NamedPath
from tests.support.runs import copy, load, network_of, run, same
from tools.data.phantoms import phantoms as make_phantoms

NAME = "ensemble_kd_kits_ct"
STUDENT: dict[str, Any] = {"epoch_length": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def chain(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights of locator and members, and `eval` with what their ensemble has left."""
    folder = tmp_path_factory.mktemp("chain")
    copy(tiny_weights(NAME), folder / "models")
    run(NAME, "locator", data=phantoms(NAME), folder=folder, max_epochs=1)
    run(NAME, "annotate", data=phantoms(NAME), folder=folder)
    return folder


def values(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(path).dataobj)


def student(chain: Path, data: Path, folder: Path, **given: Any) -> dict[str, Any]:
    """Trains the student for an epoch; returns its network."""
    folder.mkdir()
    run(
        NAME,
        "train",
        data=data,
        folder=folder,
        **{"soft_labels": str(chain / "eval"), "max_epochs": 1, **STUDENT, **given},
    )
    return dict(network_of(folder))


def test_soft_labels_of_every_scan(chain: Path, phantoms: NamedPath) -> None:
    """Sums are 1, the spread is that of probabilities, and label maps lie on the scans' grids."""
    for scan in sorted(phantoms(NAME).iterdir()):
        soft, spread, label = (
            nibabel.load(chain / f"eval/{scan.name}/{scan.name}_{kind}.nii.gz") for kind in ("soft", "spread", "label")
        )
        assert soft.get_data_dtype() == np.uint16
        np.testing.assert_allclose(values(soft.get_filename()).sum(-1), 1, atol=1e-4)
        assert 0 < values(spread.get_filename()).max() <= 0.5
        image = nibabel.load(scan / "imaging.nii.gz")
        assert (label.shape, soft.shape[:3]) == (image.shape, spread.shape)
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        assert set(np.unique(values(label.get_filename()))) <= {0, 1, 2}


def test_student_learns_from_the_soft_labels(chain: Path, phantoms: NamedPath, tmp_path: Path) -> None:
    """Other soft labels, or none, give another student; at alpha 0 the labels have no part in the loss."""
    data = phantoms(NAME)
    with_soft, without = (
        student(chain, data, tmp_path / name, **more) for name, more in (("soft", {}), ("hard", {"soft_labels": False}))
    )
    assert not same(with_soft, without)
    turned = Path(copy(chain / "eval", tmp_path / "turned"))
    for path in turned.glob("*/*_soft.nii.gz"):
        file = nibabel.load(path)
        changed = nibabel.Nifti1Image(np.asarray(file.dataobj)[..., [0, 2, 1]].astype(np.float32), file.affine)
        path.unlink()
        nibabel.save(changed, path)
    assert not same(with_soft, student(chain, data, tmp_path / "other", soft_labels=str(turned)))
    assert not same(with_soft, student(chain, data, tmp_path / "soft alone", alpha=0.0))


def test_annotation_goes_on_after_an_interruption(
    chain: Path, phantoms: NamedPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case without a label map, which may have failed, is done again, the same to the byte; the others stay."""
    folder = copy(chain, tmp_path / "again")
    names = sorted(path.name for path in phantoms(NAME).iterdir())
    files = {name: folder / f"eval/{name}/{name}_label.nii.gz" for name in names}
    before = {name: (file.stat().st_mtime_ns, values(file)) for name, file in files.items()}
    files[names[0]].unlink()
    save = nibabel.save
    monkeypatch.setattr(nibabel, "save", Mock(side_effect=OSError(28, "full")))
    with pytest.raises(Exception, match="evaluate") as error:
        run(NAME, "annotate", data=phantoms(NAME), folder=folder)
    monkeypatch.setattr(nibabel, "save", save)
    assert str(root_cause(error.value)).startswith(f"1 of 1 cases failed: {names[0]} (OSError: [Errno 28] full: ")
    assert not files[names[0]].exists()
    run(NAME, "annotate", data=phantoms(NAME), folder=folder)
    np.testing.assert_array_equal(values(files[names[0]]), before[names[0]][1])
    assert all(files[name].stat().st_mtime_ns == before[name][0] for name in names[1:])


def test_folder_of_another_ensemble_is_refused(chain: Path, phantoms: NamedPath, tmp_path: Path) -> None:
    folder = copy(chain, tmp_path / "again")
    weights = load(folder / "models/member_unet_dice.pt")
    torch.save({name: value + 1 if value.is_floating_point() else value for name, value in weights.items()},
               folder / "models/member_unet_dice.pt")  # fmt: skip
    with pytest.raises(Exception, match="evaluate") as error:
        run(NAME, "annotate", data=phantoms(NAME), folder=folder)
    assert "the folder is of another ensemble or other settings" in str(root_cause(error.value))


def root_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else root_cause(error.__cause__)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda soft: soft * 0.9, "soft labels must sum to 1 in every voxel, found 0.9"),
        (lambda soft: soft[..., :2], "soft labels must have 3 channels on their fourth axis"),
        (lambda soft: soft[1:], "soft labels are of another grid: shape"),
        (lambda soft: soft + np.array([-0.5, 0.25, 0.25], dtype=np.float32), "soft labels must lie between 0 and 1"),
    ],
)
def test_invalid_soft_labels(chain: Path, phantoms: NamedPath, tmp_path: Path, change: Any, rule: str) -> None:
    """Named with their case before anything starts."""
    soft_labels = Path(copy(chain / "eval", tmp_path / "soft"))
    for path in soft_labels.glob("*/*_soft.nii.gz"):
        file = nibabel.load(path)
        changed = nibabel.Nifti1Image(change(np.asarray(file.dataobj, dtype=np.float32)), file.affine)
        path.unlink()
        nibabel.save(changed, path)
    with pytest.raises(Exception, match="check_scans") as error:
        student(chain, phantoms(NAME), tmp_path / "student", soft_labels=str(soft_labels))
    cause = root_cause(error.value)
    assert isinstance(cause, InputError)
    assert rule in str(cause)
    assert "case case_0000" in str(cause)
    assert not (tmp_path / "student/models/training_state.pt").exists()


def test_evaluation_of_the_ensemble_is_that_of_its_label_maps(chain: Path, phantoms: NamedPath, tmp_path: Path) -> None:
    run(NAME, "ensemble_evaluate", data=phantoms(NAME), folder=chain, output_dir=str(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        name = row["case"]
        mask = values(tmp_path / f"predictions/{name}/imaging_seg.nii.gz")
        np.testing.assert_array_equal(mask, values(chain / f"eval/{name}/{name}_label.nii.gz"))
        assert values(tmp_path / f"predictions/{name}/imaging_unc_spread.nii.gz").shape == mask.shape


def test_reference_clip_is_inside_the_label(chain: Path, phantoms: NamedPath, tmp_path: Path) -> None:
    """As published: what is said outside of the reference does not count."""
    run(NAME, "evaluate", data=phantoms(NAME), folder=chain, output_dir=str(tmp_path), clip_source="reference")
    masks = sorted(tmp_path.glob("predictions/*/*_seg.nii.gz"))
    assert masks
    for path in masks:
        label = values(phantoms(NAME) / path.parent.name / "segmentation.nii.gz")
        assert not values(path)[label == 0].any()


@pytest.mark.gate
def test_acdc_preset_from_members_to_masks(tmp_path: Path) -> None:
    """2D networks, one orientation, four classes, no first stage."""
    data = make_phantoms("cooperative_training_acdc_mri", str(tmp_path / "data"), cases=4)
    given = {"receptive_field": 35, "dilated_channels": 4, "resnet_channels": 4, "unet_channels": [4, 4, 4, 4]}
    common = given | {"dataset_dir": str(data), "ckpt_dir": str(tmp_path / "models"), "device": "cpu", "amp": False}
    training = common | {"max_epochs": 1, "epoch_length": 2, "batch_size": 2, "val_interval": 1, "window": 16}

    def go(run_id: str, *stems: str, **more: Any) -> None:
        files = [f"bundles/{NAME}/configs/{stem}.yaml" for stem in stems]
        settings = (training if run_id == "training" else common) | {"output_dir": str(tmp_path / "out")} | more
        monai.bundle.run(run_id, config_file=files, logging_file=False, **settings)

    for kind in ("dilated", "resnet", "unet"):
        go("training", "train", "train_member", "acdc", f"member_{kind}")
    soft = str(tmp_path / "soft")
    go(
        "annotating",
        "inference",
        "ensemble",
        "annotate",
        "acdc",
        output_dir=soft,
        names=["dilated_ce", "resnet_ce", "unet_ce"],
    )
    go("training", "train", "acdc", soft_labels=soft)
    go("evaluating", "train", "evaluate", "acdc", output_dir=str(tmp_path / "scores"))
    go("inference", "inference", "acdc", output_dir=str(tmp_path / "masks"), test_time_flips=[0, 1])
    with (tmp_path / "scores/metrics.csv").open(newline="") as file:
        row, _ = csv.DictReader(file)  # of one patient, both frames
    assert {"dice_RV", "dice_MYO", "dice_LV", "hd95_LV", "asd_LV"} <= row.keys()
    assert len(list((tmp_path / "masks").rglob("*_seg.nii.gz"))) == 8  # both frames
    assert all(nibabel.load(path).shape[-1] == 4 for path in Path(soft).glob("*/*_soft.nii.gz"))


@pytest.mark.parametrize("stems", [[], ["member_dilated"], ["member_resnet"], ["acdc"], ["acdc", "member_dilated"]])
def test_student_is_the_same_in_training_and_inference(stems: list[str]) -> None:
    """A student of another architecture is the same overlay over train.yaml, evaluate.yaml and inference.yaml."""
    networks, predictors = [], []
    for base in (["train"], ["train", "evaluate"], ["inference"]):
        parser = monai.bundle.ConfigParser()
        parser.read_config([f"bundles/{NAME}/configs/{stem}.yaml" for stem in (*base, *stems)])
        networks.append(str(parser.get_parsed_content("network_def")))
        predictor = parser.get_parsed_content("predictor")
        predictors.append((type(predictor.inferer), {**vars(predictor.inferer)}, predictor.flips))
    assert networks[1:] == networks[:1] * 2
    assert predictors[1:] == predictors[:1] * 2


def test_start_from_given_weights(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """A first epoch without learning leaves them as they were."""
    weights = tiny_weights(NAME) / "model.pt"
    given = {"start": str(weights), "learning_rate": 0.0, "max_epochs": 1, "epoch_length": 1}
    run(NAME, "train", data=phantoms(NAME), folder=tmp_path, **given)
    found = network_of(tmp_path)
    learnt = {name for name in found if "running" not in name and "num_batches" not in name}
    expected = load(weights)
    assert all(torch.equal(found[name], expected[name]) for name in learnt)
