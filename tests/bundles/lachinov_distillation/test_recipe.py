"""How teachers and student learn from scratch, as published, and with workers; bfloat16 where a CPU lacks it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from monai.bundle import ConfigParser

from lachinov_distillation.shared.checkpointing import TrainingState
from tests.conftest import NamedPath
from tests.support.runs import network_of, run, same
from tools import REPO

BUNDLE = "lachinov_distillation_brats_mri"
TINY: dict[str, Any] = {"device": torch.device("cpu"), "channels": [8] * 4, "base": 1, "filters": [4, 4, 4]}
STAGES = [("train",)] + [("train", "train_teacher", f"teacher_{name}") for name in ("resunet", "unet", "cascaded")]
each_stage = pytest.mark.parametrize("stems", STAGES, ids=lambda stems: stems[-1])


def config(*stems: str, **overrides: Any) -> ConfigParser:
    """Parser of config files, five steps an epoch; `__` in an override's name stands for `::`."""
    parser = ConfigParser()
    parser.read_config([REPO / "bundles" / BUNDLE / "configs" / f"{stem}.yaml" for stem in stems])
    if "train" in stems:
        parser["train::dataloader"] = 5 * [0]
    parser.update(TINY | {key.replace("__", "::"): value for key, value in overrides.items()})
    return parser


@each_stage
def test_learning_rate_falls_to_the_last_epoch_of_a_run(stems: tuple[str, ...]) -> None:
    """Whoever sets the epochs of the trainer alone, as MONAI Label does, shortens the fall."""
    parser = config(*stems, train__trainer__max_epochs=4)
    schedule = parser.get_parsed_content("lr_scheduler")
    rates = []
    for _ in range(6):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    falling = [1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.01**0.9, 0.01**0.9]
    assert rates == pytest.approx([1e-3 * share for share in falling])
    assert parser.get_parsed_content("train::handlers::0").epoch_level is True


@pytest.mark.parametrize(
    ("stems", "kind", "rate", "steps", "factor"),
    [
        (STAGES[0], torch.optim.Adam, 2e-5, 16_000, 0.5),
        (STAGES[1], torch.optim.Adam, 1e-4, 16_000, 0.5),
        (STAGES[2], torch.optim.Adam, 1e-4, 16_000, 0.5),
        (STAGES[3], torch.optim.SGD, 0.1, 20, 0.99),  # four epochs of five steps
    ],
)
def test_published_settings(
    stems: tuple[str, ...], kind: type[torch.optim.Optimizer], rate: float, steps: int, factor: float
) -> None:
    parser = config(*stems, "reference")
    optimizer, schedule = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    assert isinstance(optimizer, kind)
    assert optimizer.defaults["lr"] == rate
    assert (schedule.step_size, schedule.gamma, schedule.optimizer) == (steps, factor, optimizer)
    assert parser.get_parsed_content("train::handlers::0").epoch_level is False


@each_stage
def test_averaged_weights_are_validated_and_saved(stems: tuple[str, ...]) -> None:
    """Where training is over or as published it is the network itself, of which there is no second one."""
    given: dict[str, Any] = {"validate__dataloader": [0], "validate__handlers": []}
    parser = config(*stems, **given)
    ids = ("ema", "validate::evaluator", "best_model", "network")
    ema, evaluator, best, network = (parser.get_parsed_content(name) for name in ids)
    assert evaluator.network is best.network is ema.ema_model is not network
    for overlay in ("evaluate", "reference"):
        parser = config(*stems, overlay, **given)
        assert parser.get_parsed_content("averaged") is parser.get_parsed_content("network")


class StoppedError(BaseException):
    """As if the process had been killed."""


@pytest.mark.gate
def test_workers_draw_in_a_resumed_run_what_they_would_have_drawn(phantoms: NamedPath, tmp_path: Path) -> None:
    """And something else in every epoch."""
    save, drawn, stop = TrainingState.save, list[torch.Tensor](), [0]

    def saves_and_stops(self: TrainingState, engine: Any) -> None:
        save(self, engine)
        drawn.append(engine.state.batch["image"].clone())
        if engine.state.epoch in stop:
            raise StoppedError

    given: dict[str, Any] = {"data": phantoms(BUNDLE), "max_epochs": 3, "workers": 2, "patches_per_case": 2}
    with patch.object(TrainingState, "save", saves_and_stops):
        run(BUNDLE, "resunet", folder=tmp_path / "one", **given)
        stop[0] = 2
        with pytest.raises(StoppedError):
            run(BUNDLE, "resunet", folder=tmp_path / "two", **given)
        stop[0] = 0
        run(BUNDLE, "resunet", folder=tmp_path / "two", **given)
    assert same(network_of(tmp_path / "one"), network_of(tmp_path / "two"))
    assert len(drawn) == 6
    assert all(torch.equal(drawn[epoch], drawn[3 + epoch]) for epoch in range(3))
    assert not any(torch.equal(drawn[epoch], drawn[epoch + 1]) for epoch in range(2))


@pytest.mark.parametrize(
    ("known", "warns"), [({"avx512_f": True, "avx512_bf16": False}, True), ({"amx_bf16": True}, False)]
)
def test_bfloat16_on_a_cpu_without_it(known: dict[str, bool], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    parser = config("inference", "bfloat16")
    with patch("torch.cpu.get_capabilities", return_value=known), caplog.at_level(logging.WARNING):
        inferer = parser.get_parsed_content("predictor").inferer
    answer = inferer(torch.zeros(1, 2), torch.nn.Linear(2, 2))
    assert answer.dtype == (torch.float32 if warns else torch.bfloat16)
    assert ("no bfloat16 instructions" in caplog.text) == warns
