"""Publishing a registry as a GitHub release, by PyGithub."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from github import Auth, Github, GithubException, GithubRetry, InputGitTreeElement, UnknownObjectException
from github.GitRelease import GitRelease
from github.GitReleaseAsset import GitReleaseAsset
from github.Repository import Repository
from github.Requester import (
    HTTPRequestsConnectionClass,
    HTTPSRequestsConnectionClass,
    Requester,
    RequestsResponse,
)

from tools.registry.http_log import File, HttpLog, readable
from tools.registry.index import INDEX, Release, digest

__all__ = ["publish_release"]

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two changing requests, as GitHub asks; a quarter of it between others
RETRIES = 5  # of a request that fails on the way or in the server
IN_TREE = f"models/{INDEX}"  # where MONAI looks for it


def publish_release(
    folder: Path,
    releases: Sequence[Release],
    *,
    repository: str,
    tag: str,
    target: str | None,
    token: str | None,
    log: HttpLog,
) -> None:
    """Makes the release `tag`, or completes the draft that an interrupted call left; see `publish`.

    Raises:
        ValueError: if the tag or the release exists with other content, or GitHub refuses a request.
    """
    auth = Auth.Token(token) if token else None
    address = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    try:
        with _shown(log), tempfile.TemporaryDirectory() as temporary:
            pause = 0 if log.dry_run else PAUSE
            retry = GithubRetry(total=RETRIES)
            client = Github(
                auth=auth,
                base_url=address,
                retry=retry,
                seconds_between_requests=pause / 4,
                seconds_between_writes=pause,
            )
            repo = client.get_repo(repository)
            base = f"{repo.html_url}/releases/download/{tag}"
            index = _index(Path(temporary, INDEX), releases, base=base)
            files = [index, *(folder / name for r in releases for name in (r.zip, r.sums))]
            notes = "\n".join((folder / release.notes).read_text(encoding="utf-8") for release in releases)
            _publish(repo, tag, target=target, files=files, notes=notes)
    except GithubException as error:
        raise ValueError(f"GitHub refuses with status {error.status}: {_reason(error)}") from error
    except requests.RequestException as error:
        raise ValueError(f"{address}: cannot be reached, {error}") from error
    if not log.dry_run:
        logger.info("python -m monai.bundle download NAME --source github --repo %s/%s", repository, tag)


def _index(path: Path, releases: Sequence[Release], *, base: str) -> Path:
    rows = {r.stem: {"checksum": r.sha1, "source": f"{base}/{r.zip}"} for r in releases}
    path.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return path


def _reason(error: GithubException) -> Any:
    return error.message or (error.data or {}).get("message")


def _publish(repo: Repository, tag: str, *, target: str | None, files: Sequence[Path], notes: str) -> None:
    existing = next((release for release in repo.get_releases() if release.tag_name == tag), None)
    assets = {asset.name: asset for asset in existing.get_assets()} if existing else {}
    missing = _missing(tag, files, assets)
    if existing and not existing.draft:
        _check_published(tag, missing)
        return
    if existing:
        _check_draft(existing, notes, surplus=assets.keys() - {path.name for path in files})
    _put_tag(repo, tag, target=target, index=files[0].read_text(encoding="utf-8"))
    release = existing or repo.create_git_release(tag, name=tag, message=notes, draft=True)
    _upload(release, missing, assets)
    release.update_release(name=tag, message=notes, draft=False)


def _upload(release: GitRelease, files: Sequence[Path], assets: Mapping[str, GitReleaseAsset]) -> None:
    for path in files:
        if path.name in assets:  # what an interrupted upload leaves
            assets[path.name].delete_asset()
        release.upload_asset(str(path), content_type="application/octet-stream")


def _missing(tag: str, files: Sequence[Path], assets: Mapping[str, GitReleaseAsset]) -> list[Path]:
    """The files that a release has not, or not as a whole; what it has must be the same."""
    present = {path for path in files if path.name in assets and _is_whole(assets[path.name])}
    if other := sorted(path.name for path in present if not _is_same(assets[path.name], path)):
        raise ValueError(
            f"release {tag} exists and holds another {', '.join(other)}; nothing is replaced, take a new tag"
        )
    return [path for path in files if path not in present]


def _check_published(tag: str, missing: Sequence[Path]) -> None:
    if missing:
        names = ", ".join(sorted(path.name for path in missing))
        raise ValueError(f"release {tag} is published without {names}; take a new tag")
    logger.info("release %s is published already", tag)


def _check_draft(release: GitRelease, notes: str, *, surplus: Collection[str]) -> None:
    if surplus or _text(release.body) != _text(notes):
        tag = release.tag_name
        raise ValueError(f"release {tag} exists as a draft with other notes or files; remove it, or take a new tag")


def _put_tag(repo: Repository, tag: str, *, target: str | None, index: str) -> None:
    """Puts the tag on a commit that only it holds: `target` with `models/model_info.json`."""
    if any(ref.ref == f"refs/tags/{tag}" for ref in repo.get_git_matching_refs(f"tags/{tag}")):
        try:
            held = repo.get_contents(IN_TREE, ref=tag)
        except UnknownObjectException:
            held = []
        if isinstance(held, list) or held.decoded_content != index.encode():
            raise ValueError(
                f"tag {tag} exists with another {IN_TREE}, or without; nothing is replaced, take a new tag"
            )
        return
    parent = repo.get_git_commit(repo.get_commit(target or repo.default_branch).sha)
    element = InputGitTreeElement(IN_TREE, "100644", "blob", content=index)
    tree = repo.create_git_tree([element], base_tree=parent.tree)
    commit = repo.create_git_commit(f"{tag}: index of the released bundles", tree, [parent])
    repo.create_git_ref(f"refs/tags/{tag}", commit.sha)


def _text(notes: str | None) -> list[str]:
    """The lines of notes, whichever way the service ends them."""
    return (notes or "").strip().splitlines()


def _is_whole(asset: GitReleaseAsset) -> bool:
    return asset.state == "uploaded"


def _is_same(asset: GitReleaseAsset, path: Path) -> bool:
    """Whether size and, where the server tells it, SHA-256 are those of the file."""
    if asset.size != path.stat().st_size:
        return False
    return asset.digest is None or asset.digest == f"sha256:{digest(path, 'sha256')}"


@contextmanager
def _shown(log: HttpLog) -> Iterator[None]:
    """Inside the block PyGithub's connections pass through `log`."""

    class Plain(_Connection, HTTPRequestsConnectionClass):
        passes = log

    class Secure(_Connection, HTTPSRequestsConnectionClass):
        passes = log

    Requester.injectConnectionClasses(Plain, Secure)
    try:
        yield
    finally:
        Requester.resetConnectionClasses()


class _Connection:
    """Shows a request before the connection class after it in the order of inheritance sends it."""

    passes: HttpLog
    verb: str
    protocol: str
    host: str
    port: int
    url: str
    headers: Any
    input: Any

    def getresponse(self) -> RequestsResponse:
        """Returns the answer of the server, or in a dry run one that lets the client go on."""
        usual = {"http": 80, "https": 443}[self.protocol]
        host = f"{self.protocol}://{self.host}" + ("" if self.port == usual else f":{self.port}")
        name = parse_qs(urlsplit(self.url).query).get("name", [""])[0]
        files = [File(name, int(self.headers["Content-Length"]))] if name else []
        files += [File(str(entry["path"]), len(entry["content"].encode())) for entry in _tree(self.input)]
        if self.passes.sends(self.verb, host + self.url, files=files):
            answer: RequestsResponse = super().getresponse()  # type: ignore[misc]
            return answer
        return _pretended(host, self.url, self.input)


def _tree(body: object) -> list[dict[str, str]]:
    tree: Any = readable(body).get("tree", [])
    return tree if isinstance(tree, list) else []


def _pretended(host: str, url: str, body: object) -> RequestsResponse:
    """What GitHub answers to a changing request, with NEW for what it would make up."""
    uploads = host.replace("://api.github.com", "://uploads.github.com")
    made = {"sha": "NEW", "url": f"{host}{url}/NEW", "upload_url": f"{uploads}{url}/NEW/assets{{?name,label}}"}
    response = requests.Response()
    response.status_code = 201
    response.headers["Content-Type"] = "application/json"
    response.raw = io.BytesIO(json.dumps({**readable(body), **made}).encode())
    return RequestsResponse(response)
