"""A new bundle gets its tests without a line of test code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import NAMES, package
from tools import REPO

SERVER = ["tests/tools/label/test_server.py"]
CONTRACT = ("bad_input", "checkpointing", "contract", "exports", "tensorrt", "trackers", "workflows")
FILES = [*(f"tests/contract/test_{name}.py" for name in CONTRACT), *SERVER, "tests/tools/demo/test_demo.py"]
NEW, PACKAGE = "newcomer_mri", "newcomer"


def add_copy(bundle: str, root: Path) -> None:
    """Adds a bundle under another name, its package renamed too."""
    for place in ("bundles", "tools/per_bundle"):
        ignored = shutil.ignore_patterns("models", "eval", "__pycache__")
        shutil.copytree(REPO / place / bundle, root / place / NEW, ignore=ignored)
        for file in (root / place / NEW).rglob("*.*"):
            _rename(file, bundle)
    (root / "bundles" / NEW / package(bundle)).rename(root / "bundles" / NEW / PACKAGE)
    workflows = root / "tests/bundles" / PACKAGE / "workflows.yaml"
    workflows.parent.mkdir()
    shutil.copy(REPO / "tests/bundles" / package(bundle) / "workflows.yaml", workflows)
    _rename(workflows, bundle)


def _rename(file: Path, bundle: str) -> None:
    if file.suffix in (".py", ".yaml", ".json", ".md"):
        text = file.read_text(encoding="utf-8").replace(bundle, NEW)
        file.write_text(re.sub(rf"\b{package(bundle)}\b", PACKAGE, text), encoding="utf-8")


@pytest.mark.gate
def test_new_bundle_gets_the_tests_of_its_like(tmp_path: Path) -> None:
    """Contract, workflow, export and label tests are collected for six bundles; the sixth has as many as its model."""
    ignored = shutil.ignore_patterns("models", "eval", "__pycache__")
    for place in ("bundles", "tools", "tests"):
        shutil.copytree(REPO / place, tmp_path / place, ignore=ignored)
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    add_copy(NAMES[0], tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        *FILES,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    found = Counter(
        (line.partition("::")[0], name) for line in done.stdout.splitlines() for name in (NAMES[0], NEW) if name in line
    )
    assert {file for file, name in found if name == NEW} == set(FILES)
    different = {file for file in FILES if found[file, NEW] != found[file, NAMES[0]]}
    assert different <= set(SERVER)  # where the first bundle stands for all
