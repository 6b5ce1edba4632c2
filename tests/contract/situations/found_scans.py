"""What lies beside scans, and could be taken for one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.contract.situations import Invalid, Same, Scene, Situation
from tests.support.runs import stem


def other_format(scene: Scene, key: str = "image") -> None:
    """The file of the first validation case once more, in another format."""
    file = Path(scene.cases["validation"][0][key])
    file.with_name(f"{stem(file)}.nii").touch()


def flat(scene: Scene) -> None:
    """The first validation case alone in a flat folder, with the results of an earlier run."""
    case = scene.cases["validation"][0]
    file = Path(case["image"])
    suffix = file.name.removeprefix(stem(file))
    for path in list(scene.data.iterdir()):
        shutil.rmtree(path) if path != file.parent else None
    for ending in ("", "_seg", "_atrium", "_tumour"):
        shutil.copy(case["label" if ending else "image"], scene.data / f"1.2.840.113{ending}{suffix}")
    (scene.data / ".ipynb_checkpoints").mkdir()
    shutil.rmtree(file.parent)


SITUATIONS = [
    Situation(
        "two files for one scan",
        other_format,
        Invalid(["is ambiguous"]),
        bundles=["vnet_atrial_mri", "cooperative_training_acdc_mri", "hadnet_brats_mri"],
    ),
    Situation(
        "two files for one label",
        lambda scene: other_format(scene, "label"),
        Invalid(["is ambiguous"]),
        bundles=["vnet_atrial_mri", "cooperative_training_acdc_mri", "hadnet_brats_mri"],
        commands=["evaluate"],
    ),
    Situation(
        "a name with dots beside its results",
        flat,
        Same(
            lambda scene, clean: (scene.data / f"1.2.840.113{'.nrrd' if 'vnet' in scene.bundle else '.nii.gz'}", clean)
        ),
        bundles=["vnet_atrial_mri", "ensemble_kd_kits_ct"],
    ),
]
