from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from tools import BUNDLES, REPO
from tools.registry.pack import json_copy, pack, release_files
from tools.registry.pages import links_from_root

INFERENCE = """
# Comments and anchors stay in the YAML.
imports: [$import math]
lr: 1.0e-4
weight: &weight [0.1, 2, true, null, "é", "1"]
again: *weight
network_def: {_target_: toy_net.Net, width: 3}
run: [$print(math.pi)]
"""
NETWORK = """
import torch

class Net(torch.nn.Linear):
    def __init__(self, width):
        super().__init__(width, 1)
"""


@pytest.fixture(autouse=True)
def _no_surrounding_git(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def track(folder: Path) -> Path:
    """Puts what lies in `folder` under git, in a repository of its own."""
    (folder.parent / ".gitignore").write_text("__pycache__/\nmodels/\neval/\n")
    for command in (["init", "-q"], ["add", "-A", "."]):
        subprocess.run(["git", "-C", str(folder.parent), *command], check=True)
    return folder


def make_bundle(parent: Path) -> Path:
    """A bundle `toy` of version 0.1.0 with its own package and weights, among files that do not belong."""
    folder = parent / "toy"
    files = {
        "LICENSE": "free",
        "configs/metadata.json": '{"version": "0.1.0"}',
        "configs/inference.yaml": INFERENCE,
        "configs/train.yaml": "a: 1\n",
        "docs/README.md": "text",
        "toy_net/__init__.py": NETWORK,
        "toy_net/shared/__init__.py": "",
        "toy_net/__pycache__/__init__.pyc": "cache",
        "eval/case.csv": "patient",
        "models/notes.txt": "notes",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with (folder / "models/model.pt").open("wb") as file:
        torch.save({"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([4.0])}, file)
    torch.save({"model": {}, "trainer": {"epoch": 3}}, folder / "models/training_state.pt")
    torch.save({"weight": torch.zeros(1)}, folder / "models/model_previous.pt")
    track(folder)
    (folder / "patient.csv").write_text("untracked")
    return folder


def packed(folder: Path, output: Path) -> Path:
    pack(str(folder), str(output))
    return output / "toy_v0.1.0.zip"


def test_holds_exactly_what_belongs(tmp_path: Path) -> None:
    with zipfile.ZipFile(packed(make_bundle(tmp_path / "a"), tmp_path / "dist")) as archive:
        names = archive.namelist()
        modes = {(entry.external_attr, entry.create_system, entry.date_time) for entry in archive.infolist()}
    assert names == [
        "toy/LICENSE",
        "toy/configs/inference.json",
        "toy/configs/inference.yaml",
        "toy/configs/metadata.json",
        "toy/configs/train.json",
        "toy/configs/train.yaml",
        "toy/docs/README.md",
        "toy/models/model.pt",
        "toy/toy_net/__init__.py",
        "toy/toy_net/shared/__init__.py",
    ]
    assert modes == {(0o100644 << 16, 3, (1980, 1, 1, 0, 0, 0))}


def test_missing_or_damaged_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_bundle(tmp_path)
    (folder / "models/model.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"models/model.pt: not a torch file"):
        release_files(folder)
    (folder / "models/model.pt").unlink()
    pack(str(folder), str(tmp_path / "dist"))
    assert "toy: packed without weights" in caplog.text


def test_tracked_caches_and_dot_files_stay_out(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    for name in ("models/.gitkeep", "cache/a.npz", "toy_net/__pycache__/x.pyc", "eval/x.csv", ".ruff_cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        subprocess.run(["git", "-C", str(folder), "add", "-f", name], check=True)
    assert {name.split("/")[0] for name in release_files(folder)} == {"LICENSE", "configs", "docs", "models", "toy_net"}
    assert not [name for name in release_files(folder) if name.endswith((".gitkeep", ".pyc"))]


def test_same_bytes_everywhere(tmp_path: Path, umask: None) -> None:
    first = packed(make_bundle(tmp_path / "a"), tmp_path / "dist_a").read_bytes()
    os.umask(0o077)
    folder = make_bundle(tmp_path / "deeper" / "b")
    for i, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        os.utime(path, (10**9 + i, 10**9 + i))
        path.chmod(0o700)
    second = packed(folder, tmp_path / "dist_b").read_bytes()
    assert first == second
    (folder / "docs/README.md").write_text("texts")
    assert packed(folder, tmp_path / "dist_b").read_bytes() != second


def test_checksums_and_rows(tmp_path: Path) -> None:
    folder, output = make_bundle(tmp_path / "a"), tmp_path / "dist"
    output.mkdir()
    (output / "model_info.json").write_text('{"other_v1.0.0": {"checksum": "0", "source": "x"}, "toy_v0.1.0": {}}')
    row = pack(str(folder), str(output), url="https://host/releases/download/v1/")
    content = (output / "toy_v0.1.0.zip").read_bytes()
    source = "https://host/releases/download/v1/toy_v0.1.0.zip"
    assert row == {"toy_v0.1.0": {"checksum": hashlib.sha1(content).hexdigest(), "source": source}}
    rows = json.loads((output / "model_info.json").read_text())
    assert rows == row | {"other_v1.0.0": {"checksum": "0", "source": "x"}}
    sums = (output / "toy_v0.1.0.zip.sha256").read_text()
    assert sums == f"{hashlib.sha256(content).hexdigest()}  toy_v0.1.0.zip\n"
    assert sorted(path.name for path in output.iterdir()) == [
        "model_info.json",
        "toy_v0.1.0.zip",
        "toy_v0.1.0.zip.sha256",
    ]


def test_monai_downloads_and_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = pack(str(make_bundle(tmp_path / "a")), str(tmp_path / "dist"))
    home = tmp_path / "home"
    monai.bundle.download(
        name="toy", version="0.1.0", bundle_dir=str(home), url=row["toy_v0.1.0"]["source"], progress=False
    )
    monkeypatch.syspath_prepend(str(home / "toy"))
    network = monai.bundle.load(name="toy", bundle_dir=str(home), workflow_type="inference")
    assert type(network).__name__ == "Net"
    assert network(torch.ones(1, 3)).item() == 10


def test_json_copy_reads_as_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(INFERENCE, encoding="utf-8")
    (tmp_path / "a.json").write_text(json_copy(tmp_path / "a.yaml"), encoding="utf-8")
    yaml, copy = (ConfigParser.load_config_file(tmp_path / name) for name in ("a.yaml", "a.json"))
    assert yaml == copy
    assert copy["lr"] == 1e-4
    assert copy["again"] == [0.1, 2, True, None, "é", "1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("optimizer: {lr: 1e-4}", "optimizer#lr: '1e-4' is text"),
        ("a: [0, 1.5e3]", "a#1: '1.5e3' is text"),
        ("a: -.5", "a: '-.5' is text"),
        ("a: {0: background}", "a#0: the key 0 is not text"),
        ("a: [.inf]", "a#0: inf does not exist"),
        ("a: .nan", "a: nan does not exist"),
        ("a: 2020-01-01", r"a: datetime.date\(2020, 1, 1\) does not exist"),
    ],
)
def test_what_json_cannot_say_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"train.yaml: cannot be written as JSON\n  {reason}"):
        json_copy(tmp_path / "train.yaml")


@pytest.mark.parametrize("text", ["'5'", "1e", "v1.0", "$1e-4", "e-4", "1.0e-4 mm"])
def test_other_text_is_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(f"a: {text}")
    assert json.loads(json_copy(tmp_path / "train.yaml")) == {"a": text.strip("'")}


def test_two_sources_of_a_json_copy_are_invalid(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "configs/train.json").write_text("{}")
    subprocess.run(["git", "-C", str(folder), "add", "configs"], check=True)
    with pytest.raises(ValueError, match=r"toy, configs/train.yaml: configs/train.json exists as well"):
        release_files(folder)


def test_bundles_without_git_are_packed_by_their_layout(tmp_path: Path) -> None:
    """As one that was downloaded: with its copies, among files that came later."""
    folder = make_bundle(tmp_path / "a")
    pack(str(folder), str(tmp_path / "dist"))
    with zipfile.ZipFile(tmp_path / "dist/toy_v0.1.0.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "b")
    folder = tmp_path / "b/toy"
    (folder / "patient.csv").write_text("private")
    (folder / "eval").mkdir()
    (folder / "eval/case.csv").write_text("private")
    (folder / "configs/train.yaml").write_text("a: 2")  # its copy is old now
    pack(str(folder), str(tmp_path / "again"))
    with zipfile.ZipFile(tmp_path / "again/toy_v0.1.0.zip") as archive:
        assert archive.namelist() == names
        assert json.loads(archive.read("toy/configs/train.json")) == {"a": 2}


@pytest.fixture
def common_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the repository's `docs`: `a.md` links to `b.md`, nothing links to `c.md`."""
    folder = tmp_path / "common"
    folder.mkdir()
    for name, text in {"a.md": "[b](b.md#part), [itself](#top)", "b.md": "[a](a.md)", "c.md": ""}.items():
        (folder / name).write_text(text)
    monkeypatch.setattr("tools.registry.pages.PAGES", folder)
    return folder


def test_pages_that_a_card_links_to_are_in_the_zip(tmp_path: Path, common_pages: Path) -> None:
    """Also when the downloaded bundle is packed again, far from the repository."""
    folder = make_bundle(tmp_path / "x")
    card = "[a](../../../docs/a.md#top), [own](details.md), [site](https://host/docs/a.md)"
    (folder / "docs/README.md").write_text(card)
    packed(folder, tmp_path / "dist")
    with zipfile.ZipFile(tmp_path / "dist/toy_v0.1.0.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if "docs/" in name}
        archive.extractall(tmp_path / "downloaded")
    assert texts == {
        "toy/docs/README.md": card.replace("../../../docs/", "common/"),
        "toy/docs/common/a.md": (common_pages / "a.md").read_text(),
        "toy/docs/common/b.md": (common_pages / "b.md").read_text(),
    }
    again = packed(tmp_path / "downloaded/toy", tmp_path / "again")
    assert again.read_bytes() == (tmp_path / "dist/toy_v0.1.0.zip").read_bytes()


def test_link_to_a_page_that_does_not_exist(tmp_path: Path, common_pages: Path) -> None:
    folder = make_bundle(tmp_path / "x")
    (folder / "docs/README.md").write_text("[d](../../../docs/d.md)")
    with pytest.raises(ValueError, match=r"docs/README.md: links to d.md, which is not in .*common"):
        release_files(folder)


def test_half_tracked_and_missing_bundles_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    subprocess.run(["git", "-C", str(folder), "rm", "-q", "--cached", "configs/metadata.json"], check=True)
    with pytest.raises(ValueError, match=r"toy: git does not track configs/metadata.json"):
        pack(str(folder), str(tmp_path / "dist"))
    assert list((tmp_path / "dist").iterdir()) == []
    with pytest.raises(ValueError, match=r"nobody: no bundle, .*bundles/nobody/configs/metadata.json does not exist"):
        pack("nobody", str(tmp_path / "dist"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundles_pack(bundle: Path, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
    folder = track(Path(shutil.copytree(bundle, tmp_path / bundle.name, ignore=ignore)))
    files = release_files(folder)
    for name in (name for name in files if name.endswith(".yaml") and name.startswith("configs/")):
        copy = json.loads(files[name.replace(".yaml", ".json")])
        assert copy == ConfigParser.load_config_file(bundle / name)
    assert {"LICENSE", "configs/train.json", "configs/inference.json", "docs/README.md"} <= files.keys()
    texts = {name: content.decode() for name, content in files.items() if name.endswith(".md")}
    for name, text in texts.items():
        for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) in files, (name, link)
    for link in re.findall(r"\]\(([^)#:]+)[)#]", links_from_root(texts["docs/README.md"])):
        assert link in files
    assert not {name for name in files if (REPO / "bundles" / bundle.name / name).suffix in {".nii", ".nrrd", ".pyc"}}
