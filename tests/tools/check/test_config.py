from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from tools.check.config import dangling, expand, merge

BASE: dict[str, Any] = {
    "width": 4,
    "net": {"_target_": "Net", "width": "@width", "twice": "$@width * 2", "same": "%#width"},
    "train": {"dataset": {"data": [1, 2]}, "handlers": ["a"]},
    "validate": "%train",
}


@pytest.mark.parametrize(
    "overlay",
    [
        {"width": 5, "new": [1]},
        {"train#dataset#data": [], "train::handlers#0": "b"},
        {"+train#handlers": ["b", "c"]},
        {"+train": {"handlers": []}, "+train#dataset": {"transform": "@net"}},
    ],
)
def test_merge_equals_monai(tmp_path: Path, overlay: dict[str, Any]) -> None:
    files = [tmp_path / "base.yaml", tmp_path / "overlay.yaml"]
    for file, content in zip(files, (BASE, overlay), strict=True):
        file.write_text(yaml.safe_dump(content))
    assert merge(BASE, overlay) == ConfigParser.load_config_files(files)


@pytest.mark.parametrize(
    ("overlay", "error"), [({"valid#x": 1}, KeyError), ({"+none": {}}, KeyError), ({"+train": []}, TypeError)]
)
def test_merge_refuses_what_hits_nothing(overlay: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        merge(BASE, overlay)


def test_expand_replaces_macros_and_references() -> None:
    expected = {"_target_": "Net", "width": 4, "twice": "$4 * 2", "same": 4}
    assert expand(BASE, BASE["net"], path=("net",)) == expected
    assert expand(BASE, "%train") == BASE["train"]
    assert expand({"a": "@b", "b": "$@a"}, "@a") == "$@a"


@pytest.mark.parametrize(
    ("value", "lost"),
    [
        ("@width", []),
        ("@train#handlers#0", []),
        ("@validate#dataset#data", []),
        ("@_meta_#version", []),
        ("$a @ b", []),
        ("mail@example", []),
        ("%other.yaml#net", []),
        ("@train#handlers#1", ["train::handlers::1"]),
        ("$@net#depth + @height", ["height", "net::depth"]),
        ("%nets", ["nets"]),
        ("%x#y", ["x::y"]),
    ],
)
def test_dangling_ids(value: str, lost: list[str]) -> None:
    assert sorted(dangling({**BASE, "x": value}, {"version": "0.1.0"})) == [("x", id_) for id_ in lost]
