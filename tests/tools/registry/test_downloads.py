"""All bundles from a registry, in the three ways in which unmodified MONAI downloads, and loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import NAMES, NamedPath
from tests.support.registry_files import track
from tests.support.registry_github import GitHub, direct_monai
from tests.support.registry_hub import Hub
from tests.support.registry_servers import Service, serving, serving_folder
from tools import REPO
from tools.registry.build import build
from tools.registry.http_log import HttpLog
from tools.registry.index import read_index
from tools.registry.to_github import publish_release
from tools.registry.to_hub import publish_repositories
from tools.registry.verify import problems

SHIPPED = ("model.pt", "locator.pt")
FROM_HUB = """
import sys
import monai.bundle
home, *names = sys.argv[1:]
for name in names:
    monai.bundle.download(name, source="huggingface_hub", repo=f"owner/{name}", bundle_dir=home, progress=False)
"""


@pytest.fixture(scope="module")
def dist(weights: NamedPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Registry of all bundles, with random weights for the networks of their full size."""
    parent = tmp_path_factory.mktemp("registry")
    ignored = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
    for bundle in NAMES:
        folder = Path(shutil.copytree(REPO / "bundles" / bundle, parent / "source" / bundle, ignore=ignored))
        (folder / "models").mkdir()
        for name in SHIPPED:
            if (weights(bundle) / name).is_file():
                os.link(weights(bundle) / name, folder / "models" / name)
    track(parent / "source" / NAMES[0])
    folders = [str(parent / "source" / bundle) for bundle in NAMES]
    return build(output=str(parent / "dist"), bundles=folders)


def assert_loads(bundle: str, home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's class is that of the release, not of this checkout, and holds the packed weights."""
    monkeypatch.syspath_prepend(str(home / bundle))
    target = ConfigParser.load_config_file(home / bundle / "configs/inference.json")["network_def"]["_target_"]
    expected = torch.load(weights / "model.pt", weights_only=True)
    for kind in ("train", "inference"):
        network = monai.bundle.load(name=bundle, bundle_dir=str(home), workflow_type=kind, device="cpu")
        assert type(network).__name__ == target.rpartition(".")[2]
        file = Path(str(sys.modules[type(network).__module__].__file__))
        assert file.is_relative_to(home) or type(network).__module__.startswith("monai.")
        found = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.nightly
def test_all_are_good(dist: Path) -> None:
    assert problems(str(dist)) == {release.stem: [] for release in read_index(str(dist))}
    assert [release.name for release in read_index(str(dist))] == NAMES


@pytest.mark.gate
def test_by_address(
    dist: Path, weights: NamedPath, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_folder(dist) as address:
        for release in read_index(str(dist)):
            place = f"{address}/{release.zip}"
            monai.bundle.download(name=release.name, bundle_dir=str(tmp_path), url=place, progress=False)
            assert_loads(release.name, tmp_path, weights(release.name), monkeypatch)


def test_from_github(
    dist: Path, weights: NamedPath, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest version is asked for: MONAI finds it by `models/model_info.json` in the tree of the tag."""
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr("tools.registry.to_github.PAUSE", 0)
    with serving(GitHub(tmp_path / "assets")) as service:
        assert isinstance(service, GitHub)
        monkeypatch.setenv("GITHUB_API_URL", service.address)
        publish_release(
            dist,
            read_index(str(dist)),
            repository="owner/repo",
            tag="v1",
            target=None,
            token=Service.token,
            log=HttpLog(dry_run=False),
        )
        direct_monai(service, monkeypatch)
        listed = monai.bundle.get_all_bundles_list(repo="owner/repo", tag="v1")
        assert listed == [(release.name, release.version) for release in read_index(str(dist))]
        for bundle in NAMES:
            home = str(tmp_path / "home")
            monai.bundle.download(bundle, source="github", repo="owner/repo/v1", bundle_dir=home, progress=False)
            assert_loads(bundle, tmp_path / "home", weights(bundle), monkeypatch)


@pytest.mark.gate
def test_from_the_hub(
    dist: Path, weights: NamedPath, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's address is read when its client is imported: the download has a process of its own."""
    (tmp_path / "contents").mkdir()
    home = tmp_path / "home"
    with serving(Hub(tmp_path / "contents")) as service:
        monkeypatch.setenv("HF_ENDPOINT", service.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        token, log = Service.token, HttpLog(dry_run=False)
        publish_repositories(dist, read_index(str(dist)), owner="owner", token=token, log=log)
        subprocess.run([sys.executable, "-c", FROM_HUB, str(home), *NAMES], check=True, cwd=tmp_path, timeout=600)
    for bundle in NAMES:
        assert_loads(bundle, home, weights(bundle), monkeypatch)
