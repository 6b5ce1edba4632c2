"""A run goes on when a case fails, wherever it does; the module is the same in all bundles."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.handlers import StatsHandler
from monai.transforms import Compose, Lambdad

from tools.shared.evaluation import CaseError, CaseEvaluator, CaseLoader, CaseTable, CaseTransforms, reason_of
from tools.shared.validation import InputError

PLACES = ("load", "network", "postprocessing", "row")
NAMES = ("a", "b", "c", "d")


class Trap:
    """Raises an error at one place for the cases named."""

    def __init__(self, place: str, names: str, error: type[BaseException] = ValueError) -> None:
        self.place, self.names, self.error = place, names, error

    def __call__(self, place: str, value: Any) -> Any:
        if place == self.place and NAMES[round(float(torch.as_tensor(value).mean()))] in self.names:
            raise self.error("of this\nvery case")
        return value


class Network(torch.nn.Module):
    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self.trap = trap

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.trap("network", image) + 10


class Table(CaseTable):
    def __init__(self, path: Path, trap: Trap) -> None:
        super().__init__(str(path))
        self.trap = trap

    def row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"case": item["case"], "mean": float(self.trap("row", item["pred"] - 10).mean()) + 10}

    def holds(self, item: Mapping[str, Any]) -> str:
        return f"held by {item['case']}"


def evaluator(folder: Path, trap: Trap) -> tuple[CaseEvaluator, Table]:
    """Of four cases, whose images are 0, 1, 2 and 3; a first table is fine in any case."""
    cases = [{"case": name, "image": np.full((1, 2, 2, 2), number, np.float32)} for number, name in enumerate(NAMES)]
    load = Compose([Lambdad("image", lambda image: trap("load", image))])
    tables = Table(folder / "fine.csv", Trap("", "")), Table(folder / "table.csv", trap)
    return CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=CaseLoader(Dataset(cases, load), batch_size=1, num_workers=0),
        network=Network(trap),
        postprocessing=Compose([Lambdad("pred", lambda pred: trap("postprocessing", pred - 10) + 10)]),
        val_handlers=[*tables, StatsHandler(iteration_log=False)],
    ), tables[1]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("failing", ["a", "b", "d", "bc", "abcd", ""])
def test_every_case_has_one_row(place: str, failing: str, tmp_path: Path) -> None:
    engine, table = evaluator(tmp_path, Trap(place, failing))
    completed = []
    engine.add_event_handler(Events.COMPLETED, lambda: completed.append(dict(engine.state.failures)))
    for _ in range(2):  # the second run starts again
        if not failing:
            engine.run()
            continue
        with pytest.raises(CaseError) as caught:
            engine.run()
        listed = ", ".join(f"{name} (ValueError: very case)" for name in failing)
        assert str(caught.value) == f"{len(failing)} of 4 cases failed: {listed}"
    assert completed == [dict.fromkeys(failing, "ValueError: very case")] * 2
    for name in ("fine.csv", "table.csv"):
        rows = {row["case"]: row for row in read(tmp_path / name)}
        assert len(read(tmp_path / name)) == len(rows) == 4
        assert {name for name, row in rows.items() if row["error"]} == set(failing)
        good = [(NAMES.index(name), row) for name, row in rows.items() if not row["error"]]
        assert all(float(row["mean"]) == number + 10 for number, row in good)
    assert table.held == [f"held by {row['case']}" for row in table.rows]
    assert [row["case"] for row in table.failed] == list(failing)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_user_can_stop_a_run(place: str, error: type[BaseException], tmp_path: Path) -> None:
    engine, _ = evaluator(tmp_path, Trap(place, "b", error))
    with pytest.raises(error):
        engine.run()


def test_full_disk_is_told_plainly(tmp_path: Path) -> None:
    engine, _ = evaluator(tmp_path / "file", Trap("", ""))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CaseError, match=r"the results cannot be written: .*fine\.csv"):
        engine.run()


def test_next_case_is_loaded_meanwhile() -> None:
    """One ahead, in a thread."""
    seen: list[int] = []

    def load(item: dict[str, Any]) -> dict[str, Any]:
        assert current_thread() is not main_thread()
        seen.append(int(item["image"]))
        return item

    loader = CaseLoader(Dataset([{"image": number} for number in range(4)], load), batch_size=1, num_workers=0)
    for number, batch in enumerate(loader):
        assert batch["image"].tolist() == [number]
        while len(seen) < min(number + 2, 4):
            pass
        assert len(seen) == min(number + 2, 4)
    assert len(list(loader)) == 4


def test_cases_of_one_name_are_refused() -> None:
    cases = [{"case": "a", "image": "/x/a.nii"}, {"case": "a", "image": "/y/a.nii"}]
    with pytest.raises(InputError, match=r"case a: /y/a.nii: its results would have the same name"):
        CaseEvaluator(torch.device("cpu"), CaseLoader(Dataset(cases), batch_size=1), torch.nn.Identity())


def test_transforms_of_a_training_name_the_case() -> None:
    def fail(_: Any) -> Any:
        raise ValueError("broken")

    inner = CaseTransforms([Lambdad("image", fail)])
    for item, name in (({"case": "a", "image": "x.nii"}, "a"), ({"image": "x.nii"}, "x.nii")):
        with pytest.raises(CaseError) as caught:
            CaseTransforms([inner])(item)
        assert str(caught.value) == f"case {name}: ValueError: broken"
    assert CaseTransforms([Lambdad("image", len)])({"image": "x.nii"}) == {"image": 5}


def test_reasons_take_one_line() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("applying transform") from OSError("disk\n\n  full \n")
    assert reason_of(caught.value) == "OSError: full"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 10000))) < 600
