"""The commands in the cards: what they run exists, as it is named, with the options that are given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from tests.conftest import each_bundle
from tests.support.cards import blocks, commands, pages
from tools import REPO

RUN = ["monai.bundle", "run"]
OF_MONAI = {"tracking", "net_id", "ckpt_file", "filepath", "input_shape", "converter_kwargs"}  # of its run and exports


def runs(scripts: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Id and options of every `monai.bundle run`, in one process or several."""
    for words in commands(*scripts):
        last = len(words) - words[::-1].index("-m") if "-m" in words else 0
        if words[last : last + 2] == RUN:
            given = words[last + 3 :]
            names = [name.removeprefix("--") for name in given[::2]]
            yield words[last + 2], dict(zip(names, given[1::2], strict=True))


def config(folder: Path, files: Any) -> dict[str, Any]:
    """The merged config of one file or several, as paths in the bundle."""
    names = [files] if isinstance(files, str) else files
    return dict(ConfigParser.load_config_files([str(folder / name) for name in names]))


def keys(options: dict[str, str] | list[str]) -> set[str]:
    return {re.split("#|::", name)[0] for name in options}


@each_bundle
def test_commands_of_the_card_and_the_common_pages(bundle: str) -> None:
    scripts = [block for page in pages(bundle, "exports", "distributed", "runs") for block in blocks(page)]
    found = list(runs(scripts))
    assert {"training", "inference", "evaluating"} <= {run_id for run_id, _ in found}
    for run_id, options in found:
        merged = config(REPO / "bundles" / bundle, yaml.safe_load(options.pop("config_file")))
        assert run_id in merged
        assert keys(options) <= merged.keys(), options


@each_bundle
def test_card_starts_with_commands_of_all_steps(bundle: str) -> None:
    """Installation, exactly as the metadata say, then training, inference and evaluation."""
    first, *_ = blocks(pages(bundle)[0])
    install, *_ = commands(first)
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    versions = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    versions |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    assert install == ["python", "-m", "pip", "install", *(f"{name}=={version}" for name, version in versions.items())]
    ids = [run_id for run_id, _ in runs([first])]
    assert ids[0] == "training"
    assert ids[-2:] == ["inference", "evaluating"]


@each_bundle
def test_options_in_the_text_exist(bundle: str) -> None:
    folder = REPO / "bundles" / bundle
    known = set(OF_MONAI)
    for path in folder.glob("configs/*.yaml"):
        known |= keys([name.removeprefix("+") for name in ConfigParser.load_config_file(path)])
    for page in pages(bundle, "input", "runs", "distributed", "exports"):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`(--[^`]*)`", text):
            assert set(re.findall(r"--(\w+)", code)) <= known, (page.name, code)
