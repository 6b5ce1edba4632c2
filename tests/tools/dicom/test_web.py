"""Fetching from and storing to a DICOMweb server: here a small one of which every answer can be false."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.support.dicom_files import uid, write_series
from tools.dicom import web
from tools.dicom.web import fetch, store

TYPE = 'multipart/related; type="application/dicom"; boundary=X'


class Server(ThreadingHTTPServer):
    """Holds files by the UIDs of image, and of series as it lists them."""

    files: dict[str, tuple[str, bytes]]
    stored: list[bytes]
    headers: list[str | None]
    failure: int | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.headers.append(self.headers["Authorization"])
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if not self.server.files:
            return self.answer(403, "text/plain", b"no")
        if path.endswith("/instances"):
            offset, limit = (int(query[name][0]) for name in ("offset", "limit"))
            listed = list(self.server.files.items())[offset : offset + limit]
            entries = [{"0020000E": {"vr": "UI", "Value": [series]}, "00080018": {"vr": "UI", "Value": [image]}}
                       for image, (series, _) in listed]  # fmt: skip
            return self.answer(200, "application/dicom+json", json.dumps(entries).encode())
        body = self.server.files[path.rpartition("/")[2]][1]
        return self.answer(200, TYPE, b"--X\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--X--\r\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        part = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        self.server.stored.append(part)
        item, answer = Dataset(), Dataset()
        item.ReferencedSOPInstanceUID = dcmread(io.BytesIO(part)).SOPInstanceUID
        if self.server.failure is None:
            answer.ReferencedSOPSequence = [item]
        else:
            item.FailureReason = self.server.failure
            answer.FailedSOPSequence = [item]
        self.answer(200, "application/dicom+json", answer.to_json().encode())

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "source", np.arange(8 * 6 * 3, dtype=np.int16).reshape(8, 6, 3))


@pytest.fixture
def server(files: list[Path]) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.files = {dcmread(file).SOPInstanceUID: (uid("study scan"), file.read_bytes()) for file in files}
    server.stored, server.headers = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/dicom-web"


def test_series_comes_as_it_is(
    server: Server, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAGE", 2)
    fetch(url(server), str(tmp_path / "out"), study=uid("study"), series=uid("study scan"), token="secret")
    fetched = sorted((tmp_path / "out" / uid("study scan")).iterdir())
    assert {dcmread(file).SOPInstanceUID for file in fetched} == server.files.keys()
    pixels = [{dcmread(file).SOPInstanceUID: dcmread(file).PixelData for file in found} for found in (fetched, files)]
    assert pixels[0] == pixels[1]
    assert set(server.headers) == {"Bearer secret"}


def test_files_are_stored(server: Server, files: list[Path]) -> None:
    store(url(server), str(files[0]), str(files[1]))
    assert [dcmread(io.BytesIO(part)) for part in server.stored] == [dcmread(file) for file in files[:2]]
    server.failure = 0xA700
    with pytest.raises(ValueError, match=f"{files[2].name}: http.*has not stored it, failure 0xa700"):
        store(url(server), str(files[2]))


@pytest.mark.parametrize("place", ["../../outside", "/tmp/outside", "1.2/3", "1." * 40 + "1", ""])
def test_uids_that_are_paths_are_refused(server: Server, tmp_path: Path, place: str) -> None:
    server.files = {place or "x": (place, b"")}
    with pytest.raises(ValueError, match="lists an image without UIDs of series and image"):
        fetch(url(server), str(tmp_path / "out"), study=uid("study"))
    assert not (tmp_path / "out").exists()


def test_other_images_are_refused(server: Server, tmp_path: Path) -> None:
    server.files["1.2.3"] = server.files.popitem()[1]
    with pytest.raises(ValueError, match=r"gives another image than 1.2.3, which was asked for"):
        fetch(url(server), str(tmp_path / "out"), study=uid("study"))


def test_bounds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ALL", 2000)
    with pytest.raises(ValueError, match="fetch its series one by one"):
        fetch(url(server), str(tmp_path / "out"), study=uid("study"))
    monkeypatch.setattr(web, "MOST", 2)
    with pytest.raises(ValueError, match="lists more than 2 images"):
        fetch(url(server), str(tmp_path / "out"), study=uid("study"))
    monkeypatch.setattr(web, "LARGEST", 100)
    with pytest.raises(OSError, match="more than 100 bytes"):
        fetch(url(server), str(tmp_path / "out"), study=uid("study"))


def test_what_is_told(server: Server, tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(ValueError, match="--study must be a UID, not 'a'"):
        fetch(url(server), str(tmp_path), study="a")
    with pytest.raises(ValueError, match="starts with http:// or https://"):
        fetch("file:///etc", str(tmp_path), study="1.2")
    (tmp_path / "text.dcm").write_text("no")
    with pytest.raises(ValueError, match=r"text.dcm: is no DICOM file"):
        store(url(server), str(tmp_path / "text.dcm"))
    with pytest.raises(ValueError, match="name the files"):
        store(url(server))
    server.files = {}
    with pytest.raises(OSError, match="403"):
        fetch(url(server), str(tmp_path), study=uid("study"))
    gone = url(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="refused"):
        store(gone, str(files[0]))
