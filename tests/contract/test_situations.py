"""Every situation of `tests/contract/situations` ends right or is rejected; in process, unless its module says more."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImage

from tests.conftest import NamedPath
from tests.contract.situations import Failed, Invalid, Same, Scene, Situation, situations
from tests.support.runs import cases, copy, prediction, run

ROWS = [
    pytest.param(bundle, command, situation, id=f"{kind}-{situation.name}-{bundle}-{command}".replace(" ", "_"))
    for kind, rows in situations().items()
    for situation in rows
    for bundle in situation.bundles
    for command in situation.commands
]


@pytest.mark.parametrize(("bundle", "command", "situation"), ROWS)
def test_situation(
    bundle: str, command: str, situation: Situation, phantoms: NamedPath, trained: NamedPath, tmp_path: Path
) -> None:
    data = copy(phantoms(bundle), tmp_path / "data")
    copy(trained(bundle) / "models", tmp_path / "run/models")
    scene = Scene(bundle, data, cases(bundle, data), tmp_path / "run")
    case = scene.cases["validation"][0]
    clean: Any = clean_mask(scene, case) if isinstance(situation.wanted, Same) else None
    situation.make(scene)
    if isinstance(situation.wanted, Same):
        run(bundle, command, data=scene.data, folder=scene.folder, **scene.options)
        check_mask(situation.wanted, scene, clean=clean)
        return
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps the error
        run(bundle, command, data=scene.data, folder=scene.folder, **scene.options)
    message = message_of(caught.value)
    parts = [part.format(case=case["case"], file=case["image"], data=data) for part in situation.wanted.parts]
    if isinstance(situation.wanted, Invalid):
        assert any(all(part in line for part in parts) for line in message.splitlines()), message
        assert masks_in(scene.folder / "eval") == []
        return
    assert isinstance(situation.wanted, Failed)
    rows = check_table(scene.folder / "eval", case["case"], parts=parts)
    assert f"1 of {rows} cases failed" in message.splitlines()[-1]


def check_mask(wanted: Same, scene: Scene, *, clean: Any) -> None:
    """The mask of the first validation case is the one that is wanted, and not empty."""
    case = scene.cases["validation"][0]
    where = wanted.files or (lambda *_: (Path(case["image"]), clean))
    file, expected = where(scene, clean)
    mask = LoadImage(image_only=True)(prediction(scene.folder / "eval", {**case, "image": str(file)}, data=scene.data))
    np.testing.assert_array_equal(mask.numpy(), expected)
    assert 0 < np.count_nonzero(expected) < expected.size


def check_table(folder: Path, case: str, *, parts: list[str]) -> int:
    """One case alone has an error, with these parts, all others have masks; the number of cases."""
    (table,) = [path for name in ("report.csv", "metrics.csv") if (path := folder / name).is_file()]
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert all(part in rows[case]["error"] for part in parts)
    assert [name for name, row in rows.items() if row["error"]] == [case]
    assert len(masks_in(folder)) == len(rows) - 1
    return len(rows)


def masks_in(folder: Path) -> list[Path]:
    """The masks of a run, without those that an earlier run left."""
    found = [path for path in folder.rglob("*") if path.suffix in (".gz", ".nii", ".nrrd")]
    return [path for path in found if "_previous." not in path.name]


def clean_mask(scene: Scene, case: Any) -> Any:
    """The mask of the scan before anything was changed."""
    target = scene.folder / "clean"
    run(scene.bundle, "inference", data=scene.data, folder=scene.folder, output_dir=str(target))
    return LoadImage(image_only=True)(prediction(target, case, data=scene.data)).numpy()


def message_of(error: BaseException) -> str:
    """Message of the error that a user sees: the innermost one, not MONAI's chain of wrappers."""
    while error.__cause__ is not None and type(error).__name__ != "InputError":
        error = error.__cause__
    return str(error)
