"""Publishing a registry as repositories of the Hugging Face hub, by huggingface_hub."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    RepoFile,
    constants,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.sha import git_hash

from tools.registry.archive import unpack
from tools.registry.http_log import File, HttpLog, readable
from tools.registry.index import Release, digest
from tools.registry.pages import links_from_root

__all__ = ["publish_repositories"]

Files = Mapping[str, Path]  # path in the repository -> file

logger = logging.getLogger(__name__)

LATEST = "latest_version"  # the tag that MONAI takes when no version is asked for
OWN_FILES = {".gitattributes"}  # the hub's, in every repository


def publish_repositories(
    folder: Path, releases: Sequence[Release], *, owner: str, token: str | None, log: HttpLog
) -> None:
    """Puts each release into its repository, unless it is there; see `publish`.

    Raises:
        ValueError: if a version is there with other files, or the hub refuses a request.
    """
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    api = HfApi(endpoint=endpoint, token=token or False)
    for release in releases:
        repo = f"{owner}/{release.name}"
        try:
            with tempfile.TemporaryDirectory() as temporary:
                root = unpack(folder / release.zip, release, into=Path(temporary))
                (root / "README.md").write_text(_model_card(root), encoding="utf-8", newline="\n")
                files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
                with _shown(log, files, endpoint=endpoint):
                    _publish(api, repo, version=release.version, files=files)
        except (HfHubHTTPError, RuntimeError) as error:
            raise ValueError(f"{repo}: the hub refuses, {_unsigned(str(error))}") from error
        except httpx2.HTTPError as error:
            raise ValueError(f"{endpoint}: cannot be reached, {_unsigned(str(error))}") from error
        if not log.dry_run:
            logger.info("python -m monai.bundle download %s --source huggingface_hub --repo %s", release.name, repo)


def _publish(api: HfApi, repo: str, *, version: str, files: Files) -> None:
    exists = api.repo_exists(repo)
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags} if exists else {}
    if version not in tags:
        if not exists:
            api.create_repo(repo, exist_ok=True)
        commit = _commit(api, repo, version=version, files=files, exists=exists)
    elif other := _differences(api, repo, revision=version, files=files):
        raise ValueError(f"{repo}: version {version} exists with another {', '.join(other)}; nothing is replaced")
    else:
        commit = tags[version]
        logger.info("%s: version %s is published already", repo, version)
    newest = max(filter(re.compile(r"\d\.\d\.\d").fullmatch, {*tags, version}))
    if version == newest and tags.get(LATEST) != commit:
        if LATEST in tags:  # to create a tag that exists leaves it where it is
            api.delete_tag(repo, tag=LATEST)
        api.create_tag(repo, tag=LATEST, revision=commit)


def _commit(api: HfApi, repo: str, *, version: str, files: Files, exists: bool) -> str:
    """Makes the version's commit, which has no other files, and its tag; returns the commit."""
    held = set(api.list_repo_files(repo)) - OWN_FILES if exists else set()
    gone = [CommitOperationDelete(path) for path in sorted(held - files.keys())]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    commit = api.create_commit(repo, [*added, *gone], commit_message=f"Version {version}").oid
    api.create_tag(repo, tag=version, revision=commit)
    return commit


def _differences(api: HfApi, repo: str, *, revision: str, files: Files) -> list[str]:
    """Returns the paths whose content on the hub is not that of the release."""
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    held = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path not in OWN_FILES}
    same = {path for path, entry in held.items() if path in files and _is_same(entry, files[path])}
    return sorted((held.keys() | files.keys()) - same)


def _is_same(entry: RepoFile, path: Path) -> bool:
    return bool(
        entry.lfs.sha256 == digest(path, "sha256") if entry.lfs else entry.blob_id == git_hash(path.read_bytes())
    )


def _unsigned(text: str) -> str:
    """Returns a text whose addresses have no query: that of an upload gives everybody the right to it."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1?...", text)


def _model_card(root: Path) -> str:
    """Returns the bundle's card under the header that the hub reads; the licence is that of the weights."""
    data = ModelCardData(
        library_name="monai",
        pipeline_tag="image-segmentation",
        tags=["monai", "medical"],
        license="other",
        license_name="terms-of-the-training-data",
        license_link="docs/data_license.txt",
    )
    card = links_from_root((root / "docs/README.md").read_text(encoding="utf-8"))
    return f"---\n{data.to_yaml()}\n---\n\n{card}"


@contextmanager
def _shown(log: HttpLog, files: Files, *, endpoint: str) -> Iterator[None]:
    """Inside the block the hub's client sends by `log`, and large files by HTTP: Xet's own client shows no request."""
    large = {
        digest(path, "sha256"): File(name, path.stat().st_size) for name, path in files.items() if path.suffix == ".pt"
    }
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    set_client_factory(lambda: _Client(log, large, endpoint=endpoint))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        constants.HF_HUB_DISABLE_XET = before


class _Client(httpx2.Client):
    """The hub's usual client, showing what it sends."""

    def __init__(self, log: HttpLog, large: Mapping[str, File], *, endpoint: str) -> None:
        """Takes the large files by SHA-256, which is in the address that one is uploaded to."""
        usual = default_client_factory()
        super().__init__(event_hooks=usual.event_hooks, follow_redirects=True, timeout=None)
        self.log = log
        self.endpoint = httpx2.URL(endpoint)
        self.large = large

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Sends a request, or in a dry run answers it so that the client goes on."""
        files = list(self._files(request))
        own = request.url.netloc == self.endpoint.netloc
        if self.log.sends(request.method, str(request.url) if own else _unsigned(str(request.url)), files=files):
            return super().send(request, **options)
        return httpx2.Response(200, json=self._pretended(request), request=request)

    def _files(self, request: httpx2.Request) -> Iterator[File]:
        """Yields the files of a commit or the one of an upload."""
        if request.method == "PUT":
            yield from (file for oid, file in self.large.items() if oid in str(request.url))
        elif "/commit/" in request.url.path:
            for line in map(readable, request.content.splitlines()):
                value: Any = line.get("value")
                if line.get("key") in ("file", "lfsFile"):
                    yield File(value["path"], value.get("size", len(b64decode(value.get("content", "")))))
                elif line.get("key") == "deletedFile":
                    yield File(f"{value['path']} (deleted)", 0)

    def _pretended(self, request: httpx2.Request) -> dict[str, Any]:
        """What the hub answers to a changing request, with NEW for what it would make up."""
        body: Any = readable(request.content) if request.method == "POST" else {}
        if "/preupload/" in request.url.path:
            modes = {file["path"]: "lfs" if file["path"].endswith(".pt") else "regular" for file in body["files"]}
            return {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
        if request.url.path.endswith("/objects/batch"):
            places = [{"upload": {"href": f"https://address-from-the-hub/{item['oid']}"}} for item in body["objects"]]
            return {"objects": [{**i, "actions": a} for i, a in zip(body["objects"], places, strict=True)]}
        if "/commit/" in request.url.path:
            repo = request.url.path.removeprefix("/api/models").partition("/commit/")[0]
            return {"commitOid": "NEW", "commitUrl": str(request.url.copy_with(path=f"{repo}/commit/NEW"))}
        made = f"/{body.get('organization')}/{body.get('name')}"
        return {"url": str(request.url.copy_with(path=made)), "errors": [], "warnings": []}
