"""A patient's scans train or validate together: draws, split files and datalists, in every bundle."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from lachinov_distillation.datalist import read_datalist, with_pseudo_labels
from lachinov_distillation.shared.data import read_split as read_brats
from tests.conftest import NAMES, data_module, each_bundle
from tests.support.datalist_files import SEED, Data, brats
from tests.tools.shared.test_scans import CASE, touch
from tools.data.split import find_patients, split
from vnet_atrial.shared.patients import by_patient, check_patients, patient_of

VISITS = [f"BraTS-GLI-{number:05d}-{visit:03d}" for number in range(8) for visit in range(3 if number < 4 else 1)]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        *(("BraTS-GLI-00001-000", "BraTS-GLI-00001"), ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001")),
        *(
            (name, name)
            for name in ("BraTS-GoAT-00001", "BraTS2021_00001", "BraTS20_Training_001", "BraTS19_PHANTOM_001")
        ),
        *(("Brats17_TCIA_101_1", "Brats17_TCIA_101"), ("Brats18_2013_0_1", "Brats18_2013_0")),
        *((name, name) for name in ("BRATS_001", "case_00001", "hippocampus_001", "06SR5RBREL16DQ6M8LWS", "a")),
        *((name, "001") for name in ("patient001", "001", "patient001_0", "001_3", "patient001_frame01", "001_ED_img")),
        *((name, "A0S9V9") for name in ("A0S9V9", "A0S9V9_ES", "A0S9V9_sa_ED", "A0S9V9_2")),
        *(
            (name, "sub-01")
            for name in ("sub-01_ses-2", "sub-01_ses-02_run-1", "sub-01_visit3", "sub-01_ses-pre", "sub-01")
        ),
        *((name, "brats_tcia_pat170") for name in ("brats_tcia_pat170_0002", "brats_tcia_pat170_0067")),
        *(("UPENN-GBM-00001_21", "UPENN-GBM-00001"), ("UCSF-PDGM-0004_FU003d", "UCSF-PDGM-0004")),
    ],
)
def test_patient_of_a_name(name: str, patient: str) -> None:
    assert patient_of(name) == patient.casefold()


def test_version_of_a_case_is_of_its_patient_if_that_is_there() -> None:
    assert by_patient(["X", "X_1", "Y_1", "Y_2"]) == {"X": ["X", "X_1"], "Y_1": ["Y_1"], "Y_2": ["Y_2"]}
    assert by_patient(["x", "X_1"]) == {"X_1": ["X_1", "x"]}
    assert by_patient(["a", "b", "c"], {"a": "7", "c": "7"}) == {"a": ["a", "c"], "b": ["b"]}


def test_both_cases_are_named() -> None:
    with pytest.raises(ValueError, match=r"case P-1: s: .*"):
        check_patients({"training": ["P"], "validation": ["P-1"]}, source="s", patients={"P": "1", "P-1": "1"})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_patients({"training": VISITS[:2], "validation": [], "test": VISITS[2:]}, source="split.json")
    rule = f"is in test, another scan of the patient, {VISITS[0]}, in training"
    assert f"1 problem(s) in the input, nothing was started:\n  case {VISITS[2]}: split.json: {rule}" == str(
        caught.value
    )


def data_of(bundle: str, root: Path, names: list[str]) -> tuple[Any, dict[str, Any]]:
    """Function and arguments that split a folder of these cases."""
    module = data_module(bundle)
    files = [file.replace("C_", "") for file in CASE[bundle]]
    touch(root, *(f"{name}/{file}" for name in names for file in files))
    return module.read_split, {"sequences": ("t1", "flair")} if hasattr(module, "sequence_files") else {}


def folders(cases: list[dict[str, str]]) -> set[str]:
    return {Path(case["image"]).parent.name for case in cases}


@each_bundle
def test_draws_divide_patients(bundle: str, tmp_path: Path) -> None:
    read_split, given = data_of(bundle, tmp_path, VISITS)
    touch(tmp_path, *(f"{folder}/notes.txt" for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found")))
    for seed in range(4):
        parts = read_split(tmp_path, seed=seed, validation=0.4, **given)
        training, validation = (folders(parts[part]) for part in ("training", "validation"))
        assert training | validation == set(VISITS)
        assert {patient_of(name) for name in training}.isdisjoint(map(patient_of, validation))
        assert len({patient_of(name) for name in validation}) == 3


@each_bundle
def test_split_file_that_divides_a_patient(bundle: str, tmp_path: Path) -> None:
    read_split, given = data_of(bundle, tmp_path / "data", VISITS)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"training": VISITS[1:3], "validation": VISITS[:1]}))
    with pytest.raises(ValueError, match=rf"case {VISITS[1]}: .*split.json: .*, {VISITS[0]}, in validation"):
        read_split(tmp_path / "data", file, **given)
    file.write_text(json.dumps({"training": VISITS[:3], "validation": VISITS[3:6]}))
    assert folders(read_split(tmp_path / "data", file, **given)["training"]) == set(VISITS[:3])


@each_bundle
def test_one_patient_alone_cannot_be_divided(bundle: str, tmp_path: Path) -> None:
    read_split, given = data_of(bundle, tmp_path, VISITS[:3])
    with pytest.raises(ValueError, match="two patients or more"):
        read_split(tmp_path, **given)


GRADES = [f"{grade}/{visit}" for grade in ("HGG", "LGG") for visit in VISITS if (visit < VISITS[6]) == (grade == "LGG")]
CENTRES = [f"{part}/patient{n:03d}" for n in range(13) for part in [("training", "testing")[n // 10]]]
GROUPED = ("cooperative_training_acdc_mri", "ensemble_kd_kits_ct")
LAYOUTS = {
    "cases": (VISITS, NAMES),
    "two patients": (VISITS[:4], NAMES),
    "grades": (GRADES, ("hadnet_brats_mri", "lachinov_distillation_brats_mri")),
    "groups": ([f"patient{number:03d}" for number in range(11)], GROUPED),
    "testing": (CENTRES, GROUPED[:1]),
}


@pytest.mark.parametrize(
    ("layout", "bundle"), [(layout, bundle) for layout, (_, bundles) in LAYOUTS.items() for bundle in bundles]
)
def test_tool_draws_what_the_bundle_draws(layout: str, bundle: str, tmp_path: Path) -> None:
    names, _ = LAYOUTS[layout]
    read_split, given = data_of(bundle, tmp_path / "data", names)
    if layout in ("groups", "testing"):
        for number, name in enumerate(names):
            (tmp_path / "data" / name / "Info.cfg").write_text(f"ED: 1\nES: 2\nGroup: {'ABAAB'[number % 5]}\n")
            if bundle == "ensemble_kd_kits_ct":
                touch(tmp_path / "data" / name, "imaging.nii.gz", "segmentation.nii.gz")
    for seed in (None, 0, 1):
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        own = read_split(tmp_path / "data", **given, **options)
        tool = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json"), **options).read_text())
        for part, cases in own.items():
            assert sorted(folders(cases)) == tool.get(part, []), part


def test_datalists(tmp_path: Path) -> None:
    """A record's `patient` or `subject` tells more than names; a pseudo-label may not be of a held-out patient."""
    ensemble_kd = importlib.import_module("ensemble_kd.data")
    path = tmp_path / "list.json"

    def write(**lists: list[tuple[str, dict[str, str]]]) -> Path:
        records = {
            part: [{"case": name, "image": f"{name}.nii", "label": f"{name}_l.nii", **more} for name, more in cases]
            for part, cases in lists.items()
        }
        path.write_text(json.dumps(records))
        return path

    write(training=[("a", {"patient": "1"}), ("c", {})], validation=[("b", {"subject": "1"})])
    for read in (ensemble_kd.read_split, read_datalist):
        with pytest.raises(
            ValueError, match=r"case b: .*list\.json: is in validation, another scan .*, a, in training"
        ):
            read(path)
    write(training=[(name, {"patient": name[0]}) for name in ("a1", "a2", "b1", "b2")])
    parts = ensemble_kd.read_split(path)
    assert [case["case"] for case in parts["validation"]] in (["a1", "a2"], ["b1", "b2"])
    assert "patient" not in parts["training"][0]
    write(training=[(VISITS[1], {}), ("u", {})])
    known = {"training": [], "validation": [{"case": VISITS[0], "image": "x"}], "test": []}
    rule = f"is of the patient of {VISITS[0]}, a case of validation, training on it would leak: list it in `exclude`"
    with pytest.raises(ValueError, match=rf"case {VISITS[1]}: .*list\.json: {rule}"):
        with_pseudo_labels(known, path)
    assert [case["case"] for case in with_pseudo_labels(known, path, exclude=[VISITS[1]])["training"]] == ["u"]


def test_test_cases_of_a_datalist_are_never_drawn(tmp_path: Path) -> None:
    records = {part: [{"image": f"{part}{n}.nii", "label": "l.nii"} for n in range(5)] for part in ("training", "test")}
    (tmp_path / "list.json").write_text(json.dumps(records))
    parts = importlib.import_module("ensemble_kd.data").read_split(tmp_path / "list.json")
    assert [len(parts[part]) for part in ("training", "validation", "test")] == [4, 1, 5]
    assert all(case["case"].startswith("test") for case in parts["test"])


def test_tool_divides_patients(tmp_path: Path) -> None:
    touch(tmp_path / "data", *(f"{name}/t1.nii" for name in VISITS))
    assert len(find_patients(tmp_path / "data")) == 8
    content = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=2, test=2).read_text())
    parts = [{patient_of(name) for name in content[part]} for part in ("training", "validation", "test")]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert len(set.union(*parts)) == 8
    assert sum(len(content[part]) for part in ("training", "validation", "test")) == len(VISITS)


def test_datalist_of_the_tool_keeps_visits_of_validation_patients_out(tmp_path: Path) -> None:
    data = Data(tmp_path)
    held = read_brats(data.root / "labelled", sequences=["flair"], validation=0.34, seed=SEED)["validation"][0]["case"]
    names = {f"B{number}": f"BraTS-GLI-{number:05d}-000" for number in range(6)}
    for folder in list((data.root / "labelled").glob("*/B*")):
        brats(folder.with_name(names[folder.name]), int(folder.name[1]))
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    visit = names[held].removesuffix("000") + "001"
    brats(data.root / "more" / visit, 300)
    options: dict[str, Any] = {"unlabelled": str(data.root / "more"), "decathlon": None}
    rule = f"is of the patient of case {names[held]}, who validates or is excluded"
    data.invalid(f"case {visit}: ", rule, **options)
    assert data.names(duplicates="drop", **options)["unlabelled"] == []
