"""Publishing to GitHub: the real client against an imitation, and back by unmodified MONAI."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from tests.support.registry_files import copy, toy_bundle, toy_registry
from tests.support.registry_github import GitHub, direct_monai
from tests.support.registry_servers import Service, serving
from tools.registry import to_github
from tools.registry.build import build
from tools.registry.fetch import fetch
from tools.registry.publish import publish
from tools.registry.verify import problems

ASSETS = ["model_info.json", "toy_v0.1.0.zip", "toy_v0.1.0.zip.sha256"]
WHOLE = [
    "POST /repos/owner/repo/git/trees",
    "POST /repos/owner/repo/git/commits",
    "POST /repos/owner/repo/git/refs",
    "POST /repos/owner/repo/releases",
    *3 * ["POST /uploads/repos/owner/repo/releases/0/assets"],
    "PATCH /repos/owner/repo/releases/0",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_registry(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def dist(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "dist")


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """The imitation, to which this process's client and MONAI are directed."""
    (tmp_path / "assets").mkdir()
    with serving(GitHub(tmp_path / "assets")) as service:
        assert isinstance(service, GitHub)
        direct_monai(service, monkeypatch)
        monkeypatch.setenv("GITHUB_API_URL", service.address)
        monkeypatch.setenv("GITHUB_TOKEN", Service.token)
        monkeypatch.setattr(to_github, "PAUSE", 0)
        monkeypatch.setattr(sys.modules["tools.registry.publish"], "problems", lambda dist: {})
        yield service


def upload(dist: Path, **options: Any) -> None:
    publish(str(dist), **{"github": "owner/repo", "tag": "v1", **options})


def test_published_release_is_downloaded_by_monai(
    dist: Path, github: GitHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(dist)
    assert github.changes() == WHOLE
    (release,) = github.releases
    assert not release["draft"]
    assert sorted(release["assets"]) == ASSETS
    assert release["body"] == (dist / "toy_v0.1.0.md").read_text()
    assert github.refs["refs/heads/main"] == "commit0"
    assert github.commits[github.refs["refs/tags/v1"]]["parents"] == ["commit0"]
    assert set(github.trees["tree1"]) == {"README.md", "models/model_info.json"}
    for version in (None, "0.1.0"):
        home = tmp_path / f"home{version}"
        where = {"source": "github", "repo": "owner/repo/v1", "version": version}
        monai.bundle.download(name="toy", bundle_dir=str(home), progress=False, **where)
        assert (home / "toy/models/model.pt").read_bytes()
    source = f"{github.address}/owner/repo/releases/download/v1"
    fetched = fetch("toy", registry=source, output=str(tmp_path / "safe")) / "models/model.pt"
    assert fetched.read_bytes() == (tmp_path / "homeNone/toy/models/model.pt").read_bytes()
    rows = json.loads((github.folder / "model_info.json").read_text())
    assert rows["toy_v0.1.0"]["source"] == f"{github.address}/owner/repo/releases/download/v1/toy_v0.1.0.zip"
    assert Service.token not in "".join(capsys.readouterr())


def test_absent_version(dist: Path, github: GitHub, tmp_path: Path) -> None:
    upload(dist)
    where: dict[str, Any] = {"source": "github", "repo": "owner/repo/v1", "progress": False}
    with pytest.raises(OSError, match="404"):
        monai.bundle.download(name="toy", version="0.3.0", bundle_dir=str(tmp_path / "home"), **where)
    with pytest.raises(ValueError, match="bundle: nobody is not existing"):
        monai.bundle.download(name="nobody", bundle_dir=str(tmp_path / "home"), **where)
    assert not (tmp_path / "home").exists()


def test_again_changes_nothing(dist: Path, github: GitHub, tmp_path: Path) -> None:
    upload(dist)
    before = github.changes()
    upload(dist)
    assert github.changes() == before
    (dist / "toy_v0.1.0.zip").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"release v1 exists and holds another toy_v0.1.0.zip; nothing is replaced"):
        upload(dist)
    assert github.changes() == before


def test_published_release_is_not_added_to(dist: Path, github: GitHub, tmp_path: Path) -> None:
    upload(dist)
    build(output=str(dist), bundles=str(toy_bundle(tmp_path, "0.2.0")))
    before = github.changes()
    with pytest.raises(ValueError, match="has several versions of toy, a tag holds one of each bundle"):
        upload(dist)
    following = build(output=str(tmp_path / "following"), bundles=str(tmp_path / "toy"))
    with pytest.raises(ValueError, match=r"release v1 exists and holds another model_info.json"):
        upload(following)
    assert github.changes() == before
    upload(following, tag="v2")
    assert len(github.releases) == 2


@pytest.mark.parametrize("failing", ASSETS)
def test_interrupted_upload_is_continued(failing: str, dist: Path, github: GitHub) -> None:
    github.fail = [failing]
    with pytest.raises(ValueError, match="GitHub refuses with status 400: cut off"):
        upload(dist)
    assert github.releases[0]["draft"]
    count = len(github.changes())
    upload(dist)
    again = github.changes()[count:]
    assert again == [f"DELETE /repos/owner/repo/releases/assets/0-{failing}", *WHOLE[4 + ASSETS.index(failing) :]]
    assert len(github.releases) == 1
    assert {asset["state"] for asset in github.releases[0]["assets"].values()} == {"uploaded"}
    for name in ASSETS[1:]:
        assert (github.folder / name).read_bytes() == (dist / name).read_bytes()


@pytest.mark.parametrize("held", [{"models/model_info.json": "{}"}, {}])
def test_tag_with_another_index(held: dict[str, str], dist: Path, github: GitHub) -> None:
    github.refs["refs/tags/v1"] = "commit0"
    github.trees["tree0"] |= held
    with pytest.raises(ValueError, match=r"tag v1 exists with another models/model_info.json"):
        upload(dist)
    assert github.changes() == []


@pytest.mark.parametrize("change", [{"body": "what somebody else writes"}, {"assets": {"theirs.zip": {}}}])
def test_draft_of_somebody_else(change: dict[str, Any], dist: Path, github: GitHub) -> None:
    body = (dist / "toy_v0.1.0.md").read_text().replace("\n", "\r\n")
    theirs = {"tag_name": "v1", "draft": True, "id": 0, "body": body, "assets": {}, **change}
    for name, asset in theirs["assets"].items():
        asset |= {"name": name, "state": "uploaded", "size": 1, "digest": None}
    github.releases.append(theirs)
    with pytest.raises(ValueError, match="release v1 exists as a draft with other notes or files"):
        upload(dist)
    assert github.changes() == []


def test_what_a_demo_left_is_not_published(dist: Path, github: GitHub, tmp_path: Path) -> None:
    build(output=str(dist), bundles=str(toy_bundle(tmp_path, "0.0.0")))
    with pytest.raises(ValueError, match=r"toy in version 0.0.0 was trained by a demo, it is no release"):
        upload(dist)
    assert github.log == []


def test_dry_run_shows_the_requests_of_the_real_run(
    dist: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")
    upload(dist, dry_run=True)
    shown = capsys.readouterr().out
    assert github.changes() == []
    monkeypatch.setenv("GITHUB_TOKEN", Service.token)
    github.log.clear()
    upload(dist)
    real = capsys.readouterr().out
    planned = shown.replace("  (not sent)", "").replace(
        "/repos/owner/repo/releases/NEW/assets", "/uploads/repos/owner/repo/releases/0/assets"
    )
    assert planned.replace("/releases/NEW", "/releases/0") == real
    sent = [line for line in real.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in sent] == [request.method for request in github.log]
    size = (dist / "toy_v0.1.0.zip").stat().st_size
    assert f"         toy_v0.1.0.zip  {size:,} bytes" in shown.splitlines()
    assert shown.count("(not sent)") == len(WHOLE)


def test_refusals_of_the_service(
    dist: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="GitHub refuses with status 404"):
        upload(dist, github="owner/other")
    with pytest.raises(ValueError, match="GitHub refuses with status 422: No commit found for SHA: nowhere"):
        upload(dist, target="nowhere")
    monkeypatch.setenv("GITHUB_TOKEN", "a-wrong-one")
    with pytest.raises(ValueError, match="GitHub refuses with status 401: Bad credentials") as error:
        upload(dist)
    assert "a-wrong-one" not in "".join([str(error.value), *capsys.readouterr()])
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(to_github, "RETRIES", 0)
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9: cannot be reached"):
        upload(dist)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"github": None}, "give either --github"),
        ({"hub": "owner"}, "give either --github"),
        ({"github": None, "hub": "owner"}, "--tag belongs to --github"),
        ({"github": "repo"}, "must be OWNER/REPOSITORY"),
        ({"tag": "release/1"}, "no slash"),
        ({"tag": None}, "--tag must be given"),
        ({"tag": 1.0}, "tag 1.0 was read as float, quote it: \"'1.0'\""),
        ({"target": 1234567}, "target 1234567 was read as int, quote it"),
    ],
)
def test_arguments(options: dict[str, Any], reason: str, dist: Path, github: GitHub) -> None:
    with pytest.raises(ValueError, match=reason):
        upload(dist, **options)
    assert github.log == []


def test_nothing_is_asked_without_token_client_or_good_registry(
    dist: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tools.registry.publish"], "problems", problems)
    (dist / "toy_v0.1.0.zip").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"not fit to be published\n  toy_v0.1.0: .* SHA-256 is not that"):
        upload(dist)
    monkeypatch.delenv("GITHUB_TOKEN")
    with pytest.raises(ValueError, match="set GITHUB_TOKEN to a token that may write"):
        upload(dist)
    monkeypatch.delitem(sys.modules, "tools.registry.to_github")
    monkeypatch.setitem(sys.modules, "github", None)
    with pytest.raises(ValueError, match="publishing needs PyGithub: python -m pip install PyGithub"):
        upload(dist)
    assert github.log == []
