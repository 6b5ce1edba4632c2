"""The figures of cards and README: as their descriptions draw them, small, and in every release."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import NAMES
from tools import REPO
from tools.figure.cli import figure
from tools.figure.drawing import draw
from tools.figure.slices import phantom_slice
from tools.registry.pack import release_files

FIGURES = [*NAMES, None]
KILOBYTES = 150


def committed(bundle: str | None) -> Path:
    return REPO / (f"bundles/{bundle}/docs/figure.png" if bundle else "docs/figure.png")


@pytest.mark.gate
@pytest.mark.parametrize("bundle", FIGURES)
def test_figure_is_what_its_command_draws(bundle: str | None, tmp_path: Path) -> None:
    """Up to the rendering of text, which differs a little between versions of matplotlib."""
    drawn = Image.open(figure(bundle, output=str(tmp_path / "figure.png"))).convert("RGBA")
    kept = Image.open(committed(bundle)).convert("RGBA")
    assert drawn.size == kept.size
    assert np.abs(np.asarray(drawn, float) - np.asarray(kept, float)).mean() < 2


@pytest.mark.parametrize("bundle", FIGURES)
def test_figure_is_small(bundle: str | None) -> None:
    assert committed(bundle).stat().st_size <= KILOBYTES * 1000


@pytest.mark.parametrize("bundle", NAMES)
def test_release_has_the_figure(bundle: str) -> None:
    folder = REPO / "bundles" / bundle
    assert release_files(folder, weights=False)["docs/figure.png"] == committed(bundle).read_bytes()


def test_slice_is_where_most_is_labelled() -> None:
    """A square around the labels: 2 x 40 mm at 5 mm are 16 pixels."""
    small = partial(phantom_slice, "vnet_atrial_mri", labels="laendo.nrrd", shape=(64, 64, 16), spacing=(5, 5, 5))
    shown = small(scan="lgemri.nrrd", reach=40)
    assert shown.scan.shape == shown.labels.shape == (16, 16)
    assert (shown.scan.min(), shown.scan.max()) >= (0, 0.5)
    whole = small(scan="lgemri.nrrd")
    assert np.count_nonzero(whole.labels) >= np.count_nonzero(shown.labels) > 0


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figure for bundle 'no'"):
        figure("no")
    with pytest.raises(ValueError, match="no file of the phantom ends with 'flair'"):
        phantom_slice("vnet_atrial_mri", scan="flair", labels="laendo.nrrd", shape=(32, 32, 8), spacing=(9, 9, 9))
    plan = {"height": 100, "nodes": {"a": {"at": [50, 50], "box": ["A"]}}, "arrows": [{"from": "a", "to": "b"}]}
    with pytest.raises(ValueError, match="an arrow names 'b', the nodes are: a"):
        draw(plan, {}, path=tmp_path / "figure.png")
    with pytest.raises(ValueError, match="there is no slice 's'"):
        draw({"height": 100, "nodes": {"a": {"at": [50, 50], "slice": "s"}}, "arrows": []}, {}, path=tmp_path / "f.png")
    assert list(tmp_path.iterdir()) == []
