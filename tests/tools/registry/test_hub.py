"""Publishing to the Hugging Face hub: the real client against an imitation, and back by the hub's client."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from tests.support.registry_files import copy, toy_bundle, toy_registry
from tests.support.registry_hub import Hub
from tests.support.registry_servers import Service, serving
from tools.registry.build import build
from tools.registry.publish import publish

REPO = "owner/toy"
ONCE = "/api/agent-harnesses"  # the client asks huggingface.co for it once in a process
FILES = {
    ".gitattributes",
    "LICENSE",
    "README.md",
    "configs/inference.json",
    "configs/inference.yaml",
    "configs/metadata.json",
    "configs/train.json",
    "configs/train.yaml",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
    "release_net/__init__.py",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_registry(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def dist(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "dist")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The imitation, to which `publish` is directed."""
    (tmp_path / "contents").mkdir()
    with serving(Hub(tmp_path / "contents")) as service:
        assert isinstance(service, Hub)
        monkeypatch.setenv("HF_ENDPOINT", service.address)
        monkeypatch.setenv("HF_TOKEN", Service.token)
        monkeypatch.setattr(sys.modules["tools.registry.publish"], "problems", lambda dist: {})
        yield service


def upload(dist: Path, **options: Any) -> None:
    publish(str(dist), hub="owner", **options)


def test_published_repository(dist: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload(dist)
    assert set(hub.files(REPO, "0.1.0") or {}) == FILES
    assert hub.tags[REPO] == {"0.1.0": 1, "latest_version": 1}
    assert not hub.private[REPO]
    home = tmp_path / "home"
    huggingface_hub.snapshot_download(REPO, revision="0.1.0", local_dir=home, endpoint=hub.address)
    card = (home / "README.md").read_text()
    assert card.endswith("---\n\n# Toy\n\nVersion 0.1.0.\n")
    header = card.split("---")[1]
    for line in ("library_name: monai", "license: other", "license_link: docs/data_license.txt", "- monai"):
        assert line in header.splitlines()
    weights = torch.load(home / "models/model.pt", weights_only=True)
    assert weights["weight"].shape == (2, 1, 1, 1, 1)
    assert Service.token not in "".join(capsys.readouterr())


def test_next_version_replaces_the_files_and_moves_the_latest_tag(dist: Path, hub: Hub, tmp_path: Path) -> None:
    upload(dist)
    folder = toy_bundle(tmp_path, "0.2.0")
    (folder / "configs/train.yaml").rename(folder / "configs/inference.yaml")  # git still lists the old name
    (folder / "configs/train.yaml").write_text("a: 1\n")
    build(output=str(tmp_path / "next"), bundles=str(folder))
    hub.repos[REPO][-1]["old.txt"] = hub.repos[REPO][-1]["LICENSE"]
    upload(tmp_path / "next")
    assert hub.tags[REPO] == {"0.1.0": 1, "0.2.0": 2, "latest_version": 2}
    assert set(hub.files(REPO, "0.2.0") or {}) == FILES
    assert "old.txt" in (hub.files(REPO, "0.1.0") or {})


def test_older_version_leaves_the_latest_tag(dist: Path, hub: Hub, tmp_path: Path) -> None:
    build(output=str(tmp_path / "next"), bundles=str(toy_bundle(tmp_path, "0.2.0")))
    upload(tmp_path / "next")
    hub.tags[REPO]["experiment"] = 1  # of somebody else, later in the alphabet
    upload(dist)
    assert hub.tags[REPO] == {"0.2.0": 1, "latest_version": 1, "0.1.0": 2, "experiment": 1}
    build(output=str(tmp_path / "third"), bundles=str(toy_bundle(tmp_path / "c", "0.3.0")))
    upload(tmp_path / "third")
    assert hub.tags[REPO]["latest_version"] == 3


def test_again_changes_nothing(dist: Path, hub: Hub, tmp_path: Path) -> None:
    upload(dist)
    count = len(hub.changes())
    upload(dist)
    assert hub.changes()[count:] == []
    folder = toy_bundle(tmp_path)
    (folder / "LICENSE").write_text("another")
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), folder / "models/model.pt")
    build(output=str(tmp_path / "other"), bundles=str(folder))
    with pytest.raises(ValueError, match=r"version 0.1.0 exists with another LICENSE, models/model.pt; nothing is"):
        upload(tmp_path / "other")
    assert hub.changes()[count:] == []


@pytest.mark.parametrize(
    ("failing", "left"),
    [
        ("/storage/", ["batch", "storage", "commit", "tag/0", "tag/0"]),
        ("/tag/0.1.0", ["batch", "tag/0", "tag/0"]),
        ("/tag/latest_version", ["tag/0"]),
    ],
)
def test_interrupted_upload_is_continued(failing: str, left: list[str], dist: Path, hub: Hub) -> None:
    hub.fail = [failing]
    with pytest.raises(ValueError, match="owner/toy: the hub refuses") as error:
        upload(dist)
    assert Hub.signature not in str(error.value)
    count = len(hub.changes())
    upload(dist)
    again = [line for line in hub.changes()[count:] if "preupload" not in line and "validate" not in line]
    assert len(again) == len(left)
    assert all(part in line for part, line in zip(left, again, strict=True))
    assert hub.tags[REPO] == {"0.1.0": 1, "latest_version": 1}
    assert set(hub.files(REPO, "0.1.0") or {}) == FILES


def test_dry_run_shows_the_requests_of_the_real_run(
    dist: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    upload(dist, dry_run=True)
    shown = capsys.readouterr().out
    assert hub.changes() == []
    monkeypatch.setenv("HF_TOKEN", Service.token)
    hub.log.clear()
    upload(dist)
    real = capsys.readouterr().out
    assert "?..." in real
    assert Hub.signature not in real
    planned = shown.replace("  (not sent)", "").replace("https://address-from-the-hub/", f"{hub.bucket}/storage/")
    planned = planned.replace("/tag/NEW", f"/tag/{1:040x}")
    real = re.sub(r"(/storage/\w+)\?\.\.\.", r"\1", real)  # the query that lets everybody upload is cut off
    assert [line for line in planned.splitlines() if ONCE not in line] == [
        line for line in real.splitlines() if ONCE not in line
    ]
    sent = [line.split()[0] for line in real.splitlines() if not line.startswith(" ") and ONCE not in line]
    assert sent == [request.method for request in hub.log]
    assert "         LICENSE  28 bytes" in real.splitlines()
    (size,) = (len(request.body) for request in hub.log if request.method == "PUT")
    assert real.splitlines().count(f"         models/model.pt  {size:,} bytes") == 2  # sent, and named in the commit


def test_options_of_the_other_service(dist: Path, hub: Hub) -> None:
    with pytest.raises(ValueError, match="--target does not go with --hub"):
        upload(dist, target="main")
    assert hub.log == []


def test_refusals_of_the_service(
    dist: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-wrong-one")
    with pytest.raises(ValueError, match=r"owner/toy: the hub refuses, .*401") as error:
        upload(dist)
    assert "a-wrong-one" not in "".join([str(error.value), *capsys.readouterr()])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9: cannot be reached"):
        upload(dist)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="set HF_TOKEN to a token that may write"):
        upload(dist)
    monkeypatch.delitem(sys.modules, "tools.registry.to_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="publishing needs huggingface_hub: python -m pip install huggingface_hub"):
        upload(dist)
