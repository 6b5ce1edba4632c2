"""The documentation site: what it is made of. Whether MkDocs builds it without warnings shows `make docs`."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import NAMES
from tools import REPO
from tools.site.options import Option, options, table
from tools.site.pages import LINK, assets, howtos, linked, pages, with_cards

CONFIG = """\
# What the file does.
dataset_dir: /data # <case>/scan.nii.gz | or a list
rate: 1.0e-2

# Above,
# in two lines.
sizes: [1,
  2] # behind the last line
note: 'a # b' # after
loss: {_target_: DiceLoss, sigmoid: true} # a part
imports: [$import torch]
run: [$1]
"""


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_options_of_a_config(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(CONFIG)
    assert options(file) == [
        Option("dataset_dir", "/data", "<case>/scan.nii.gz | or a list"),
        Option("rate", "0.01", ""),
        Option("sizes", "[1, 2]", "behind the last line"),
        Option("note", "'a # b'", "after"),
        Option("loss", "{_target_: DiceLoss, sigmoid: true}", "a part", "DiceLoss"),
    ]
    file.write_text("# Of the file.\na: 1\n# In one,\n# and another line.\nb: null\n")
    assert options(file) == [Option("a", "1", ""), Option("b", "null", "In one, and another line.")]
    file.write_text("[1]")
    with pytest.raises(ValueError, match="is no mapping"):
        options(file)


def test_table_of_options() -> None:
    rows = table([Option("a", "x|y", "<b> | c"), Option("long", "9" * 100, ""), Option("net", "{}", "", "VNet")])
    assert rows.splitlines() == [
        "| Option | Default | Comment |",
        "| --- | --- | --- |",
        "| `a` | `x\\|y` | &lt;b> \\| c |",
        f"| `long` | `{'9' * 88} …` |  |",
        "",
        "| Component | Class or function | Comment |",
        "| --- | --- | --- |",
        "| `net` | `VNet` |  |",
    ]


@pytest.mark.parametrize("bundle", NAMES)
def test_every_key_of_every_config_is_there(bundle: str, made: dict[str, str]) -> None:
    text = made[f"reference/{bundle}.md"]
    for path in (REPO / "bundles" / bundle / "configs").glob("*.yaml"):
        assert f"## `{path.name}`" in text
        keys = set(yaml.safe_load(path.read_text())) - {"run", "imports", "training", "evaluating", "inference"}
        assert {key for key in keys if f"| `{key}` |" not in text} == set()


def test_links_lead_where_the_site_has_pages(made: dict[str, str]) -> None:
    """Of README, cards and their details: to pages, figures and results, or to nothing."""
    card = "bundles/vnet_atrial_mri/docs/README.md"
    text = "[a](../../../docs/input.md#checks) ![b](figure.png) [c](details.md) [d](../configs) [e](https://f.org)"
    assert linked(card, text) == "[a](../../input.md#checks) ![b](figure.png) [c](details.md) d [e](https://f.org)"
    readme = f"[![ci](a.svg)](b)\n[x]({card}) [y](LICENSE) [z](#h)"
    assert linked("README.md", readme) == "[x](bundles/vnet_atrial_mri/README.md) y [z](#h)"
    there = {*made, *assets(), *(path.name for path in (REPO / "docs").iterdir())}
    for page, content in made.items():
        code_free = re.sub(r"^```.*?^```$", "", content, flags=re.DOTALL | re.MULTILINE)
        for _, _, target, _ in LINK.findall(code_free):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) in there, (page, target)


def test_names_of_bundles_in_tables_lead_to_cards() -> None:
    text = "`vnet_atrial_mri` | no\n| `a` | `vnet_atrial_mri` |\n```\n| `vnet_atrial_mri` |\n```"
    assert with_cards("choose.md", text) == text.replace(
        "| `vnet_atrial_mri` |\n`", "| [`vnet_atrial_mri`](bundles/vnet_atrial_mri/README.md) |\n`", 1
    )


def test_pages_that_no_menu_names_are_howtos() -> None:
    every = {path.name for path in (REPO / "docs").glob("*.md")}
    assert howtos(every - {"runs.md", "input.md"}) == ["input.md", "runs.md"]
