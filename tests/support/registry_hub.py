"""An imitation of the parts of the Hugging Face hub that a model repository needs: API, large files, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import git_hash

from tests.support.registry_servers import Answer, Request, Route, Service

API = "/api/models/([^/]+/[^/]+)"
Files = dict[str, str]  # path -> SHA-256 of the content


class Hub(Service):
    """A hub without repositories; contents lie in a folder by their SHA-256."""

    signature = "secret-signature-of-the-tests"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.repos: dict[str, list[Files]] = {}  # commits, oldest first
        self.tags: dict[str, dict[str, int]] = {}
        self.private: dict[str, bool] = {}

    def routes(self) -> list[tuple[str, str, Route]]:
        """As the client of the hub asks; `storage` stands for the bucket that large files go to."""
        return [
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", lambda _: Answer({"errors": [], "warnings": []})),
            ("GET", API, lambda _, repo: self._info(repo, "main")),
            ("GET", f"{API}/refs", lambda _, repo: self._refs(repo)),
            ("GET", f"{API}/revision/([^/]+)", lambda _, repo, revision: self._info(repo, revision)),
            ("GET", f"{API}/tree/([^/]+)", lambda _, repo, revision: self._tree(repo, revision)),
            ("POST", f"{API}/preupload/main", self._modes),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", "/storage/([0-9a-f]{64})", self._store),
            ("POST", f"{API}/commit/main", self._commit),
            ("POST", f"{API}/tag/([^/]+)", self._tag),
            ("DELETE", f"{API}/tag/([^/]+)", self._untag),
            ("HEAD", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
            ("GET", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        ]

    @property
    def bucket(self) -> str:
        """Address under which large files are stored: another host than that of the hub."""
        return self.address.replace("127.0.0.1", "localhost")

    def files(self, repo: str, revision: str) -> Files | None:
        """The files of a revision."""
        number = self._number(repo, revision)
        return None if number is None else self.repos[repo][number]

    def _number(self, repo: str, revision: str) -> int | None:
        known = {self._sha(number): number for number in range(len(self.repos.get(repo, [])))}
        return {**known, **self.tags.get(repo, {}), "main": len(known) - 1 if known else None}.get(revision)

    @staticmethod
    def _sha(number: int) -> str:
        return f"{number:040x}"

    def _missing(self, repo: str) -> Answer:
        code = "RevisionNotFound" if repo in self.repos else "RepoNotFound"
        return Answer({"error": "Not Found"}, 404, {"X-Error-Code": code})

    def _put(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        (self.folder / oid).write_bytes(content)
        return oid

    def _create(self, request: Request) -> Answer:
        content = request.json()
        repo = f"{content['organization']}/{content['name']}"
        self.repos[repo] = [{".gitattributes": self._put(b"*.pt filter=lfs\n")}]
        self.tags[repo] = {}
        self.private[repo] = content.get("visibility") == "private"
        return Answer({"url": f"{self.address}/{repo}"})

    def _info(self, repo: str, revision: str) -> Answer:
        number = self._number(repo, revision)
        if number is None:
            return self._missing(repo)
        names = [{"rfilename": name} for name in self.repos[repo][number]]
        return Answer({"id": repo, "sha": self._sha(number), "siblings": names})

    def _refs(self, repo: str) -> Answer:
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": self._sha(i)} for n, i in self.tags[repo].items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self._sha(len(self.repos[repo]) - 1)}
        return Answer({"branches": [main], "tags": tags, "converts": []})

    def _tree(self, repo: str, revision: str) -> Answer:
        files = self.files(repo, revision)
        if files is None:
            return self._missing(repo)
        return Answer([self._entry(path, (self.folder / oid).read_bytes(), oid) for path, oid in files.items()])

    def _entry(self, path: str, content: bytes, oid: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        large = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}}
        return entry | (large if path.endswith(".pt") else {})

    def _modes(self, request: Request, repo: str) -> Answer:
        files, held = [], self.files(repo, "main") or {}
        for file in request.json()["files"]:
            large = file["path"].endswith(".pt")
            oid = held.get(file["path"])
            known = oid if large or oid is None else git_hash((self.folder / oid).read_bytes())
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return Answer({"files": files})

    def _batch(self, request: Request, repo: str) -> Answer:
        objects = request.json()["objects"]
        for item in objects:
            if not (self.folder / item["oid"]).is_file():
                item["actions"] = {
                    "upload": {"href": f"{self.bucket}/storage/{item['oid']}?X-Signature={self.signature}"}
                }
        return Answer({"objects": objects}, 200, {"Content-Type": "application/vnd.git-lfs+json"})

    def _store(self, request: Request, oid: str) -> Answer:
        if self.fails("/storage/") or hashlib.sha256(request.body).hexdigest() != oid:
            return Answer({"error": "cut off"}, 400)
        self._put(request.body)
        return Answer()

    def _commit(self, request: Request, repo: str) -> Answer:
        files = dict(self.repos[repo][-1])
        for line in map(json.loads, request.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self._put(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                assert (self.folder / value["oid"]).is_file()
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repos[repo].append(files)
        sha = self._sha(len(self.repos[repo]) - 1)
        return Answer({"commitOid": sha, "commitUrl": f"{self.address}/{repo}/commit/{sha}"})

    def _tag(self, request: Request, repo: str, revision: str) -> Answer:
        tag, number = request.json()["tag"], self._number(repo, revision)
        if tag in self.tags[repo]:
            return Answer({"error": "Tag reference exists already"}, 409)
        if number is None or self.fails(f"/tag/{tag}"):
            return Answer({"error": "cut off"}, 400)
        self.tags[repo][tag] = number
        return Answer({})

    def _untag(self, request: Request, repo: str, tag: str) -> Answer:
        del self.tags[repo][tag]
        return Answer({})

    def _file(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        number = self._number(repo, revision)
        if number is None or path not in self.repos[repo][number]:
            return self._missing(repo)
        oid = self.repos[repo][number][path]
        content = (self.folder / oid).read_bytes()
        return Answer(content, 200, {"ETag": f'"{oid}"', "X-Repo-Commit": self._sha(number)})
