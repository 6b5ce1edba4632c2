"""Who may ask the server at all: by host, page, token, size and path, before MONAI Label sees a request."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["COOKIE", "LARGEST_FORM", "LARGEST_UPLOAD", "Guard", "RequestError"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "label_token"
LARGEST_UPLOAD = 2**31  # bytes of a request that carries files
LARGEST_FORM = 2**20  # of any other
PAGES = re.compile(r"/(docs|favicon\.ico|ohif(/.*)?)?")  # a link from elsewhere may lead to them
CLOSED = [  # method, path and why MONAI Label does not get to see it
    (r"POST", r"/reload/?", "the app is not loaded again: start the server again"),
    (r"PUT|DELETE", r"/model(/.*)?", "weights are not changed over the network: put them into the app's folder"),
    (r"DELETE", r"/datastore/?|/datastore/image/?", "scans are not deleted over the network"),
    (r"GET|HEAD", r"/datastore/dataset/?", "the study folder is not sent as a whole"),
    (r"POST", r"/infer/wsi(_v2)?/.*", "these bundles segment no slides"),
    (r"GET|HEAD", r"/logs/gpu/?", "no programs are run for requests"),
    (r"POST", r"/proxy/.*", "the DICOM store is only read through this server"),
]


class RequestError(Exception):
    """Why a request is rejected, and the HTTP status of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """ASGI middleware that rejects requests of other sites' pages, without the token, too large, or to closed paths.

    A page of another site can send requests that need no permission, and one whose name was made to stand for this
    machine (DNS rebinding) passes for its own: hence the rules for `Origin`, `Sec-Fetch-Site` and `Host`.

    Args:
        app: what answers the others.
        origins: sites whose pages may use the server beside its own, for example `http://viewer:3000`.
        hosts: names under which the server may be asked; addresses and localhost always may.
        token: what a request must have, as `Authorization: Bearer <token>`, or once as `?token=<token>`, which leaves
            it in a cookie; empty: none.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        origins: Collection[str] = (),
        hosts: Collection[str] = (),
        token: str = "",
    ) -> None:
        self.app = app
        self.origins = {origin.strip().lower().rstrip("/") for origin in origins if origin.strip()}
        named = {urlsplit(origin).hostname or "" for origin in self.origins}
        self.hosts = {"localhost", *named, *(host.lower() for host in hosts)}
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it pass."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check_host(scope, headers)
            self.check_page(scope, headers)
            check_path(scope)
            limit = largest(headers)
            if self.token and scope["path"].rstrip("/") in ("/auth", "/auth/token"):
                return await self._log_in(scope, receive, send)
            cookie = self.check_token(scope, headers)
        except RequestError as rejection:
            return await _answer(send, rejection.status, {"detail": str(rejection)})
        if self.token and scope["path"].rstrip("/") == "/auth/token/valid":
            return await _answer(send, 200, {"username": "annotator"})
        return await self._pass_on(scope, receive, send, limit=limit, cookie=cookie)

    def check_host(self, scope: Scope, headers: dict[str, str]) -> None:
        """Rejects a name that is not the server's, also one that stands for its address."""
        name = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").rstrip(".").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name not in self.hosts:
                rule = f"this server is not known as {name!r}: start it with --origins http://{name or 'name'}:<port>"
                raise RequestError(403, rule) from None

    def check_page(self, scope: Scope, headers: dict[str, str]) -> None:
        """Rejects what a browser sends for a page of another site."""
        own = {f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")}
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            if origin.lower() not in self.origins | own:
                raise RequestError(403, f"pages of {origin} may not use this server: --origins names others that may")
        elif site not in ("none", "same-origin"):
            opened = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
            if not (opened and PAGES.fullmatch(scope["path"])):
                raise RequestError(403, "pages of other sites may not use this server")

    def check_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Rejects a request without the token; returns whether it came in the address and shall go into a cookie."""
        if not self.token or scope["method"] == "OPTIONS":  # a browser asks what it may send, without saying who asks
            return False
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(sent.strip()):
            return False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and self.is_token(cookie.value):
            return False
        if any(map(self.is_token, parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", ()))):
            return True
        raise RequestError(
            401, "the token is missing or another: Authorization: Bearer <token>, or once ?token=<token>"
        )

    def is_token(self, sent: str) -> bool:
        """Whether it is the token; how long that takes does not tell how much of it is right."""
        return hmac.compare_digest(sent.encode(), self.token.encode())

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What MONAI Label's client and 3D Slicer ask; any user name goes, the password is the token."""
        if scope["path"].rstrip("/") == "/auth":
            return await _answer(send, 200, {"enabled": True, "client_id": "monailabel-app", "realm": ""})
        body = b""
        while len(body) <= LARGEST_FORM and (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        sent = parse_qs(body[:LARGEST_FORM].decode("latin-1")).get("password", [""])[0]
        if not self.is_token(sent):
            return await _answer(send, 401, {"detail": "the password is the token that the server was started with"})
        return await _answer(send, 200, {"access_token": self.token, "token_type": "Bearer"})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, *, limit: int, cookie: bool) -> None:
        """Lets the request pass as long as its body is not larger than it may be."""
        size, begun = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise RequestError(413, f"the request has more than {limit:,} bytes")
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if size > limit:  # whatever is made of the error, the answer says what was wrong
                return
            begun = True
            if cookie and message["type"] == "http.response.start":
                value = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                message = {**message, "headers": [*message.get("headers", ()), (b"set-cookie", value.encode())]}
            await send(message)

        try:
            await self.app(scope, counted, sent)
        except RequestError:
            if size <= limit:
                raise
        if size > limit and not begun:
            await _answer(send, 413, {"detail": f"the request has more than {limit:,} bytes"})


def check_path(scope: Scope) -> None:
    """Rejects paths that leave their place, and those that are closed."""
    path = scope["path"]
    if re.search(r"\\|[\0-\x1f\x7f]|//|%", path) or {".", ".."} & set(path.split("/")):
        raise RequestError(400, "the path leaves its place")
    for method, pattern, reason in CLOSED:
        if re.fullmatch(method, scope["method"]) and re.fullmatch(pattern, path):
            raise RequestError(403, reason)


def largest(headers: dict[str, str]) -> int:
    """The bytes that a request may have by its kind.

    Raises:
        RequestError: it says that it has more.
    """
    limit = LARGEST_UPLOAD if headers.get("content-type", "").startswith("multipart/") else LARGEST_FORM
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise RequestError(413, f"the request has more than {limit:,} bytes")
    return limit


async def _answer(send: Send, status: int, content: object) -> None:
    """Sends JSON."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
