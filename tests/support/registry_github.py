"""An imitation of the parts of GitHub that a release needs: REST API, uploads, downloads, raw content."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.registry_servers import Answer, Request, Route, Service

REPO = "/repos/owner/repo"


class GitHub(Service):
    """The repository `owner/repo` with one commit on `main`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.trees: dict[str, dict[str, str]] = {"tree0": {"README.md": "code"}}
        self.commits: dict[str, dict[str, Any]] = {"commit0": {"tree": "tree0", "parents": []}}
        self.refs: dict[str, str] = {"refs/heads/main": "commit0"}
        self.releases: list[dict[str, Any]] = []

    def routes(self) -> list[tuple[str, str, Route]]:
        """The addresses of GitHub's documentation; uploads and raw content are on hosts of their own there."""
        return [
            (
                "GET",
                REPO,
                lambda _: Answer(
                    {"html_url": f"{self.address}/owner/repo", **self._at(REPO), "default_branch": "main"}
                ),
            ),
            ("GET", f"{REPO}/releases", lambda _: Answer([self._shown(release) for release in self.releases])),
            ("POST", f"{REPO}/releases", self._add_release),
            ("PATCH", rf"{REPO}/releases/(\d+)", self._change_release),
            (
                "GET",
                rf"{REPO}/releases/(\d+)/assets",
                lambda _, i: Answer(self._shown(self.releases[int(i)])["assets"]),
            ),
            ("POST", rf"/uploads{REPO}/releases/(\d+)/assets", self._upload),
            ("DELETE", rf"{REPO}/releases/assets/(\d+)-(.+)", self._delete_asset),
            ("GET", f"{REPO}/git/matching-refs/(.+)", self._matching),
            ("GET", f"{REPO}/commits/(.+)", lambda _, ref: self._commit(self.refs.get(f"refs/heads/{ref}") or ref)),
            ("GET", f"{REPO}/git/commits/(.+)", lambda _, sha: self._commit(sha)),
            ("POST", f"{REPO}/git/trees", self._add_tree),
            ("POST", f"{REPO}/git/commits", self._add_commit),
            ("POST", f"{REPO}/git/refs", self._add_ref),
            ("GET", f"{REPO}/contents/(.+)", lambda request, path: self._contents(request.query["ref"], path)),
            ("GET", "/owner/repo/releases/download/([^/]+)/(.+)", self._download),
            ("GET", "/raw/owner/repo/([^/]+)/(.+)", self._raw),
        ]

    def _at(self, path: str) -> dict[str, str]:
        return {"url": self.address + path}

    def _shown(self, release: dict[str, Any]) -> dict[str, Any]:
        assets = list(release["assets"].values())
        return {**release, "assets": assets, **self._at(f"{REPO}/releases/{release['id']}")}

    def _add_release(self, request: Request) -> Answer:
        number = len(self.releases)
        upload = f"{self.address}/uploads{REPO}/releases/{number}/assets{{?name,label}}"
        self.releases.append({**request.json(), "id": number, "upload_url": upload, "assets": {}})
        return Answer(self._shown(self.releases[-1]), 201)

    def _change_release(self, request: Request, number: str) -> Answer:
        self.releases[int(number)].update(request.json())
        return Answer(self._shown(self.releases[int(number)]))

    def _upload(self, request: Request, number: str) -> Answer:
        name, assets = request.query["name"], self.releases[int(number)]["assets"]
        if name in assets:
            return Answer({"message": "already_exists"}, 422)
        assets[name] = {"name": name, **self._at(f"{REPO}/releases/assets/{number}-{name}")}
        if self.fails(name):
            assets[name] |= {"state": "starter", "size": 0, "digest": None}
            return Answer({"message": "cut off"}, 400)
        digest = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
        assets[name] |= {"state": "uploaded", "size": len(request.body), "digest": digest}
        (self.folder / name).write_bytes(request.body)
        return Answer(assets[name], 201)

    def _delete_asset(self, request: Request, number: str, name: str) -> Answer:
        del self.releases[int(number)]["assets"][name]
        return Answer(None, 204)

    def _matching(self, request: Request, part: str) -> Answer:
        return Answer(
            [{"ref": ref, "object": {"sha": self.refs[ref]}} for ref in self.refs if ref.startswith(f"refs/{part}")]
        )

    def _commit(self, sha: str) -> Answer:
        if sha not in self.commits:
            return Answer({"message": f"No commit found for SHA: {sha}"}, 422)
        return Answer({"sha": sha, "tree": {"sha": self.commits[sha]["tree"]}})

    def _add_tree(self, request: Request) -> Answer:
        content = request.json()
        sha = f"tree{len(self.trees)}"
        self.trees[sha] = self.trees[content["base_tree"]] | {
            entry["path"]: entry["content"] for entry in content["tree"]
        }
        return Answer({"sha": sha}, 201)

    def _add_commit(self, request: Request) -> Answer:
        content = request.json()
        sha = f"commit{len(self.commits)}"
        assert content["tree"] in self.trees
        assert all(parent in self.commits for parent in content["parents"])
        self.commits[sha] = content
        return Answer({"sha": sha}, 201)

    def _add_ref(self, request: Request) -> Answer:
        content = request.json()
        if content["ref"] in self.refs or content["sha"] not in self.commits:
            return Answer({"message": "Reference already exists"}, 422)
        self.refs[content["ref"]] = content["sha"]
        return Answer({"ref": content["ref"], "object": {"sha": content["sha"]}}, 201)

    def _file(self, tag: str, path: str) -> str | None:
        sha = self.refs.get(f"refs/tags/{tag}")
        return self.trees[self.commits[sha]["tree"]].get(path) if sha else None

    def _contents(self, tag: str, path: str) -> Answer:
        text = self._file(tag, path)
        if text is None:
            return Answer({"message": "Not Found"}, 404)
        return Answer({"type": "file", "encoding": "base64", "content": base64.b64encode(text.encode()).decode()})

    def _download(self, request: Request, tag: str, name: str) -> Answer:
        public = [release for release in self.releases if release["tag_name"] == tag and not release["draft"]]
        held = bool(public) and name in public[0]["assets"]
        return Answer((self.folder / name).read_bytes()) if held else Answer({"message": "Not Found"}, 404)

    def _raw(self, request: Request, tag: str, path: str) -> Answer:
        text = self._file(tag, path)
        return Answer({}, 404) if text is None else Answer(text.encode())


def direct_monai(service: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces GitHub's two hosts, which MONAI holds as constants, by the imitation's address."""
    get = requests.get
    raw = "https://raw.githubusercontent.com"
    monkeypatch.setattr(requests, "get", lambda url, **kw: get(url.replace(raw, f"{service.address}/raw"), **kw))
    monkeypatch.setattr(
        "monai.bundle.scripts._get_git_release_url",
        lambda repo_owner, repo_name, tag_name, filename: (
            f"{service.address}/{repo_owner}/{repo_name}/releases/download/{tag_name}/{filename}"
        ),
    )
