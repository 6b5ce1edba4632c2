"""The figure of hard examples of the cooperative-training bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cooperative_training.figure import DPI, PANEL, draw, draw_hard_examples, hard_examples
from cooperative_training.masking import LatentMasking
from cooperative_training.networks import CooperativeNetwork
from cooperative_training.shared.validation import InputError

MASKINGS = {kind: LatentMasking([kind], random_threshold=False) for kind in ("dropout", "spatial", "channel")}


class Slices:
    """A training set of `size` slices that notes which are asked for; slice i is a ramp plus i / 10."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        image = torch.linspace(0, 0.5, 32).expand(1, 32, 32) + index / 10
        return {"clean_image": image, "clean_label": (image > 0.4).byte() * 3}


@pytest.fixture
def network() -> CooperativeNetwork:
    torch.manual_seed(0)
    return CooperativeNetwork(channels=(4, 4, 8, 8, 8))


def stacks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    items = [Slices(9)[index] for index in range(count)]
    image, label = (torch.stack([item[key] for item in items]) for key in ("clean_image", "clean_label"))
    return image, label


def test_panels_follow_the_masked_codes(network: CooperativeNetwork) -> None:
    """Each group shows what the decoders make of codes masked by its kind, and how that is segmented and refined."""
    image, label = stacks(2)
    torch.manual_seed(1)
    groups = hard_examples(network, image, label=label, maskings={"dropout": MASKINGS["dropout"]})
    torch.manual_seed(1)
    with torch.no_grad():
        image_code, shape_code = network.encode(image)
        masked_image, masked_shape = (torch.nn.functional.dropout2d(code, 0.5) for code in (image_code, shape_code))
        corrupted = network.image_decoder(masked_image)
        found = network.segmentation_decoder(network.encode(corrupted)[1])
        clean, shape = (network.segmentation_decoder(code) for code in (shape_code, masked_shape))
        refined = network.refine(found)
        reconstruction = network.image_decoder(image_code)
    expected = {
        "training slices": [image, label, reconstruction, clean.argmax(1, True)],
        "dropout": [corrupted, found.argmax(1, True), refined.argmax(1, True), shape.argmax(1, True)],
    }
    assert list(groups) == list(expected)
    for name, panels in expected.items():
        for panel, (heading, drawn) in zip(panels, groups[name].items(), strict=True):
            assert torch.allclose(drawn, panel.to(drawn.dtype)), (name, heading)


def test_kinds_differ_and_the_network_stays_as_it_was(network: CooperativeNetwork) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image, label = stacks(2)
    groups = hard_examples(network, image, label=label, maskings=MASKINGS)
    corrupted = [groups["training slices"]["reconstruction"], *(groups[kind]["corrupted image"] for kind in MASKINGS)]
    for index, one in enumerate(corrupted):
        assert not any(torch.equal(one, other) for other in corrupted[:index])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_a_panel_is_drawn_in_its_place(tmp_path: Path) -> None:
    """Another label map in the second column of the second group changes the fourth of five columns, second row."""
    dark, none = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    figures = []
    for value in (0, 1, 3):
        some = none.clone()
        some[1, 0, 5:] = value
        draw({"a": {"x": dark, "y": none}, "b": {"x": dark, "y": some, "z": dark}}, tmp_path / "new" / "p.png")
        figures.append(imread(tmp_path / "new/p.png")[..., :3])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]
    height, width = figures[0].shape[:2]
    assert width == pytest.approx(5 * PANEL * DPI, abs=1)
    for figure, colour in zip(figures[1:], ((0x2E, 0xC4, 0xFF), (0xFF, 0x4F, 0x81)), strict=True):
        rows, columns = np.nonzero((figure != figures[0]).any(-1))
        # x runs to the right: the changed pixels are the right part of the panel
        assert 0.6 * width + 0.5 * PANEL * DPI < columns.min() < columns.max() < 0.8 * width
        assert rows.min() > height / 2
        middle = figure[int(np.median(rows)), int(np.median(columns))]
        np.testing.assert_allclose(middle * 255, colour, atol=2)


def test_slices_are_spread_over_the_training_set(network: CooperativeNetwork, tmp_path: Path) -> None:
    dataset = Slices(9)
    path = tmp_path / "hard_examples.png"
    draw_hard_examples(network, dataset, maskings=MASKINGS, slices=3, path=str(path))  # type: ignore[arg-type]
    assert dataset.asked == [1, 4, 7]
    assert imread(path).shape[1] == pytest.approx(16 * PANEL * DPI, abs=1)


@pytest.mark.parametrize("slices", [0, 10])
def test_more_slices_than_there_are(slices: int, network: CooperativeNetwork, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"slices: must be 1 to 9, .* got {slices}"):
        draw_hard_examples(network, Slices(9), maskings=MASKINGS, slices=slices, path=str(tmp_path / "p.png"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
