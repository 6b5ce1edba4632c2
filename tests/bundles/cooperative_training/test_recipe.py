"""What `train.yaml` trains with, and what `reference.yaml` takes back of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.cooperative_training.reference import BUNDLE
from tests.conftest import NamedPath
from tests.support.runs import copy, load, network_of, run, same
from tools import REPO


def rates(parser: ConfigParser, epochs: int) -> list[float]:
    """Learning rates of the epochs, as the trainer's handler sets them."""
    weight = torch.nn.Parameter(torch.zeros(1))
    parser["network"] = torch.nn.ParameterList([weight])
    optimizer, scheduler = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def parser(*stems: str) -> ConfigParser:
    found = ConfigParser()
    found.read_config([REPO / "bundles" / BUNDLE / f"configs/{stem}.yaml" for stem in ("train", *stems)])
    return found


def test_learning_rate_falls_over_the_epochs_of_the_trainer() -> None:
    """MONAI Label and short trainings replace the trainer's own number of epochs."""
    config = parser()
    config["train::trainer::max_epochs"] = 4
    assert rates(config, 6) == pytest.approx([2e-3 * share**0.9 for share in (1, 0.75, 0.5, 0.25, 0.01, 0.01)])


def test_published_learning_rate_stays() -> None:
    assert rates(parser("reference"), 3) == [1e-4] * 3


def test_averaged_weights_are_saved(phantoms: NamedPath, tmp_path: Path) -> None:
    """Weights of the last validation are the average, those of the published recipe the network's own."""
    for stage in ("train", "reference"):
        folder = tmp_path / stage
        run(BUNDLE, stage, data=phantoms(BUNDLE), folder=folder, max_epochs=1)
        (state,) = (load(path) for path in (folder / "models").glob("*state.pt"))
        saved = load(folder / "models/model.pt")
        assert same(saved, state["ema"] if stage == "train" else state["network"])
        assert not same(state["ema"], state["network"])


@pytest.mark.gate
def test_start_from_given_weights(phantoms: NamedPath, tiny_weights: NamedPath, tmp_path: Path) -> None:
    """Without learning they stay as they are; a run that goes on does so from its own state."""
    start = copy(tiny_weights(BUNDLE), tmp_path / "given") / "model.pt"
    given = load(start)
    settings = {"start": str(start), "optimizer#lr": 0.0}
    run(BUNDLE, "train", data=phantoms(BUNDLE), folder=tmp_path, max_epochs=1, **settings)
    found = network_of(tmp_path)
    learned = [name for name in given if name.endswith(("weight", "bias"))]
    assert all(torch.equal(found[name], given[name]) for name in learned)
    start.unlink()
    run(BUNDLE, "train", data=phantoms(BUNDLE), folder=tmp_path, max_epochs=2, **settings)
    found = network_of(tmp_path)
    assert all(torch.equal(found[name], given[name]) for name in learned)
