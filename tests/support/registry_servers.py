"""Servers on loopback: one for a folder, and one that the imitations of GitHub and of the Hugging Face hub build on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit


class Request(NamedTuple):
    """What a client asks for."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Content of a JSON body."""
        return json.loads(self.body)


class Answer(NamedTuple):
    """What a server says: JSON, bytes or a file."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012


Route = Callable[..., Answer]


class Service:
    """Answers by the first of `routes` whose method and pattern fit; keeps every request in `log`."""

    token = "secret-token-of-the-tests"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.log: list[Request] = []
        self.fail: list[str] = []  # parts of addresses: the next changing request with one is rejected

    def routes(self) -> list[tuple[str, str, Route]]:
        """Method, pattern of the path, and what answers with the pattern's groups."""
        raise NotImplementedError

    def answer(self, request: Request) -> Answer:
        """Rejects changes without the token."""
        self.log.append(request)
        changes = request.method not in ("GET", "HEAD") and not request.path.startswith("/storage/")
        if changes and self.token not in request.headers.get("authorization", ""):
            return Answer({"message": "Bad credentials", "error": "Bad credentials"}, 401)
        for method, pattern, route in self.routes():
            if request.method == method and (match := re.fullmatch(pattern, request.path)):
                return route(request, *match.groups())
        return Answer({"message": "Not Found", "error": "Not Found"}, 404)

    def fails(self, address: str) -> bool:
        """Whether this request is to fail; it works the next time."""
        found = [part for part in self.fail if part in address]
        self.fail = [part for part in self.fail if part not in found]
        return bool(found)

    def changes(self) -> list[str]:
        """Method and path of every request so far that is not a read."""
        return [f"{request.method} {request.path}" for request in self.log if request.method not in ("GET", "HEAD")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, service: Service, *args: Any) -> None:
        self.service = service
        super().__init__(*args)

    def _respond(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        request = Request(self.command, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body)
        answer = self.service.answer(request)
        raw = isinstance(answer.content, bytes)
        content = answer.content if raw else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        kind = "application/octet-stream" if raw else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and answer.status != 204:
            self.wfile.write(content)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(headers.get("content-length", 0)))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _respond  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def _listening(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Runs an imitation; its `address` is set."""
    with _listening(partial(_Handler, service)) as address:
        service.address = address
        yield service


@contextmanager
def serving_folder(folder: Path) -> Iterator[str]:
    """Serves files as any web server does; yields the address."""
    with _listening(partial(_Files, directory=str(folder))) as address:
        yield address
