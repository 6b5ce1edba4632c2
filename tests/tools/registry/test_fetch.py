"""What `registry fetch`, `registry verify` and plain MONAI do with good and with bad releases."""

from __future__ import annotations

import io
import json
import pickle
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy as copy_of
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.error import HTTPError

import monai.bundle
import pytest
import torch
from filelock import FileLock

from tests.support.registry_files import copy, resign, rewrite, toy_bundle, toy_registry
from tests.support.registry_servers import serving_folder
from tools.registry.build import build
from tools.registry.fetch import fetch
from tools.registry.verify import problems

Members = dict[str, bytes]
UP = "landed_outside_of_its_folder"


class Bad(NamedTuple):
    """A registry with a bad release: how it is made, why it is rejected, what plain MONAI does: raise, or load."""

    make: Callable[[Path], object]
    rejection: str
    monai: str


class Runs:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def with_weights(content: object) -> Callable[[Members], Members]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return lambda members: {**members, "toy/models/model.pt": buffer.getvalue()}


def linked(members: Members) -> dict[Any, bytes]:
    link = zipfile.ZipInfo("toy/docs/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    return {**members, link: b"/etc/passwd"}


def cut(dist: Path, left: float = 0.5) -> Path:
    path = dist / "toy_v0.1.0.zip"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    return dist


def change_last_byte(dist: Path) -> None:
    """A zip that still unpacks, with another content than the sum says."""
    rewrite(copy(dist, dist / "second"), lambda members: {**members, "toy/LICENSE": b"another"})
    (dist / "toy_v0.1.0.zip").write_bytes((dist / "second/toy_v0.1.0.zip").read_bytes())


BAD = {
    "wrong checksum": Bad(change_last_byte, "its SHA-256 is not that of", "loads"),
    "truncated": Bad(cut, "its SHA-256 is not that of", "File is not a zip file"),
    "truncated, with its sum": Bad(lambda dist: resign(cut(dist)), "truncated or damaged", "File is not a zip file"),
    "truncated after the weights": Bad(  # a zip themselves, whose directory is taken for that of the outer one
        lambda dist: resign(cut(dist, 0.95)), "data.pkl: not in the one folder toy/", "downloads something else"
    ),
    "traversal": Bad(
        lambda dist: rewrite(dist, lambda members: {**members, **{f"toy/{'../' * i}{UP}": b"" for i in (2, 3, 4, 5)}}),
        f"toy/../../{UP}: the path leaves its folder",
        "Unsafe path",
    ),
    "absolute": Bad(
        lambda dist: rewrite(dist, lambda members: {**members, f"{dist.parent}/{UP}": b""}),
        f"/{UP}: an absolute",
        "Unsafe path",
    ),
    "compressed": Bad(
        lambda dist: rewrite(dist, lambda members: members, zipfile.ZIP_DEFLATED),
        "toy/LICENSE: compressed, the files of a release are stored as they are",
        "loads",
    ),
    "symbolic link": Bad(lambda dist: rewrite(dist, linked), "toy/docs/link: a link", "loads"),
    "two folders": Bad(
        lambda dist: rewrite(dist, lambda members: {**members, "other/a.py": b""}),
        "other/a.py: not in the one folder toy/",
        "loads",
    ),
    "no folder": Bad(
        lambda dist: rewrite(dist, lambda members: {k.removeprefix("toy/"): v for k, v in members.items()}),
        "LICENSE: not in the one folder toy/",
        "downloads something else",
    ),
    "a pickled module": Bad(
        lambda dist: rewrite(dist, with_weights(torch.nn.Conv3d(1, 2, 1))),
        "models/model.pt is no plain state dict: .* it asks for torch.nn.modules.conv.Conv3d",
        "Weights only load failed",
    ),
    "weights that are NaN": Bad(
        lambda dist: rewrite(
            dist, with_weights({"weight": torch.full((2, 1, 1, 1, 1), torch.nan), "bias": torch.zeros(2)})
        ),
        "models/model.pt: weight .* is NaN, infinite or complex",
        "loads",
    ),
    "a nested checkpoint": Bad(
        lambda dist: rewrite(dist, with_weights({"model": torch.nn.Conv3d(1, 2, 1).state_dict(), "epoch": 1})),
        "models/model.pt is no plain state dict: .*the file holds model, epoch",
        "loads",
    ),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_registry(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def dist(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "dist")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def address(dist: Path) -> Iterator[str]:
    with serving_folder(dist) as place:
        yield place


def outside(home: Path) -> list[Path]:
    """Where a member of a zip landed that leaves its folder; zips are unpacked in here or in the temporary folder."""
    temporary = Path(tempfile.gettempdir())
    places = {home, *home.parents, temporary, *temporary.parents}
    return [place / UP for place in places if (place / UP).exists()]


def plain(address: str, home: Path) -> object:
    """What people do who have MONAI alone; the network, or nothing if the bundle's folder is not there."""
    monai.bundle.download(name="toy", bundle_dir=str(home), url=f"{address}/toy_v0.1.0.zip", progress=False)
    if not (home / "toy").exists():  # to load it would ask the model zoo
        return None
    return monai.bundle.load(name="toy", bundle_dir=str(home), workflow_type="inference", device="cpu")


@pytest.mark.parametrize("from_folder", [False, True])
def test_fetches(from_folder: bool, dist: Path, address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(dist) if from_folder else f"{address}/"
    folder = fetch("toy", registry=source, output=str(home))
    assert [path.name for path in home.iterdir()] == ["toy"]
    monkeypatch.syspath_prepend(str(folder))
    network = monai.bundle.load(name="toy", bundle_dir=str(home), workflow_type="inference", device="cpu")
    assert torch.equal(network.weight, torch.load(folder / "models/model.pt", weights_only=True)["weight"])


@pytest.mark.parametrize("kind", BAD)
def test_refused_and_nothing_left(kind: str, dist: Path, address: str, home: Path) -> None:
    BAD[kind].make(dist)
    with pytest.raises(ValueError, match=BAD[kind].rejection):
        fetch("toy", registry=address, output=str(home))
    assert list(home.iterdir()) == []
    with pytest.raises(ValueError, match=BAD[kind].rejection):
        fetch("toy", registry=address, output=str(home / "made/for/it"))
    assert list(home.iterdir()) == []
    (reason,) = problems(str(dist))["toy_v0.1.0"]
    with pytest.raises(ValueError, match=BAD[kind].rejection):
        raise ValueError(reason)
    assert not outside(home)


@pytest.mark.parametrize("kind", BAD)
def test_what_plain_monai_does(
    kind: str, dist: Path, address: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documentation says so; where it loads, `registry fetch` is of use."""
    BAD[kind].make(dist)
    monkeypatch.syspath_prepend(str(home / "toy"))
    if BAD[kind].monai == "loads":
        assert isinstance(plain(address, home), torch.nn.Module)
    elif BAD[kind].monai == "downloads something else":
        assert plain(address, home) is None
    else:
        with pytest.raises((ValueError, OSError, pickle.UnpicklingError, zipfile.BadZipFile), match=BAD[kind].monai):
            plain(address, home)
    assert not outside(home)
    assert (home / "toy.zip").is_file()


def test_plain_monai_does_not_recover_from_a_truncated_zip(dist: Path, address: str, home: Path) -> None:
    good = (dist / "toy_v0.1.0.zip").read_bytes()
    cut(dist)
    with pytest.raises(zipfile.BadZipFile):
        plain(address, home)
    (dist / "toy_v0.1.0.zip").write_bytes(good)
    with pytest.raises(zipfile.BadZipFile):
        plain(address, home)
    assert fetch("toy", registry=address, output=str(home)) == home / "toy"


def test_weights_run_no_code(dist: Path, address: str, home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(Runs(marker), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()
    marker.unlink()
    rewrite(dist, with_weights(Runs(marker)))
    with pytest.raises(ValueError, match=r"models/model.pt is no plain state dict"):
        fetch("toy", registry=address, output=str(home))
    assert "models/model.pt is no plain state dict" in problems(str(dist))["toy_v0.1.0"][0]
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        plain(address, home)
    assert not marker.exists()


def test_versions(dist: Path, address: str, home: Path, tmp_path: Path) -> None:
    build(output=str(dist), bundles=str(toy_bundle(tmp_path, "0.2.0")))
    with pytest.raises(ValueError, match=r"no version 0.3.0 of toy, there are 0.1.0, 0.2.0"):
        fetch("toy", registry=address, output=str(home), version="0.3.0")
    with pytest.raises(ValueError, match="no bundle nobody, there are toy"):
        fetch("nobody", registry=address, output=str(home))
    with pytest.raises(HTTPError, match="404"):
        monai.bundle.download(name="toy", bundle_dir=str(home), url=f"{address}/toy_v0.3.0.zip", progress=False)
    assert list(home.iterdir()) == []
    fetch("toy", registry=address, output=str(home))
    assert json.loads((home / "toy/configs/metadata.json").read_text())["version"] == "0.2.0"
    (home / "toy/mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"toy: there already, in version 0.2.0; remove it to get 0.1.0"):
        fetch("toy", registry=address, output=str(home), version="0.1.0")
    fetch("toy", registry=address, output=str(home), version="0.2.0")
    assert (home / "toy/mine.txt").read_text() == "kept"
    (home / "toy/LICENSE").write_text("another")
    with pytest.raises(ValueError, match=r"toy: there already, with another LICENSE; remove it to get the release"):
        fetch("toy", registry=address, output=str(home), version="0.2.0")
    assert (home / "toy/LICENSE").read_text() == "another"
    (home / "toy/configs/metadata.json").unlink()
    with pytest.raises(ValueError, match="toy: there already, in version unknown"):
        fetch("toy", registry=address, output=str(home))


def test_server_that_breaks_off(dist: Path, address: str, home: Path) -> None:
    (dist / "toy_v0.1.0.zip").unlink()
    with pytest.raises(ValueError, match="cannot be downloaded, HTTP Error 404"):
        fetch("toy", registry=address, output=str(home))
    (dist / "toy_v0.1.0.zip.sha256").unlink()
    with pytest.raises(ValueError, match=r"toy_v0.1.0.zip.sha256: cannot be read, HTTP Error 404"):
        fetch("toy", registry=address, output=str(home))
    assert list(home.iterdir()) == []


ODD = {
    "the same name in another case": ("toy/license", "on some systems the same file as toy/LICENSE"),
    "a device of Windows": ("toy/docs/con.txt", "Windows has no such name"),
    "a dot at the end": ("toy/docs./a", "Windows has no such name"),
    "a stream of a file": ("toy/docs/a:b", "Windows has no such name"),
    "letters that are not composed": ("toy/docs/e\u0301", "not composed"),
    "a long name": (f"toy/{'a' * 201}", "the name is too long"),
    "a long path": (f"toy/{'a/' * 101}b", "the name is too long"),
    "an end inside of the name": ("toy/docs/a\0b", "Windows has no such name"),
    "a path of Windows": ("toy\\docs\\a", "or one of another system"),
}


@pytest.mark.parametrize("kind", ODD)
def test_names_that_are_not_one_file_everywhere(kind: str, dist: Path, home: Path) -> None:
    name, reason = ODD[kind]

    def add(members: Members) -> dict[Any, bytes]:
        entry = zipfile.ZipInfo("toy/x")
        entry.filename = name
        return {**members, entry: b""}

    rewrite(dist, add)
    with pytest.raises(ValueError, match=re.escape(reason)):
        fetch("toy", registry=str(dist), output=str(home))
    assert list(home.iterdir()) == []


def test_members_that_share_their_bytes(dist: Path, home: Path) -> None:
    """A small zip whose directory names the same bytes many times."""
    with zipfile.ZipFile(dist / "toy_v0.1.0.zip", "a") as archive:
        weights = archive.getinfo("toy/models/model.pt")
        for number in range(20):
            again = copy_of(weights)
            again.filename = f"toy/models/{number}.pt"
            archive.filelist.append(again)
        archive.writestr("toy/docs/new.md", "")
    resign(dist)
    with pytest.raises(ValueError, match=r"toy/models/0.pt: overlaps the member before it"):
        fetch("toy", registry=str(dist), output=str(home))
    assert list(home.iterdir()) == []


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))


def trickling(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.1)


def slow_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.flush_headers()
    while True:
        handler.wfile.write(b"X: y\r\n")
        time.sleep(0.1)


def lying(handler: BaseHTTPRequestHandler) -> None:
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"short")


def huge(handler: BaseHTTPRequestHandler) -> None:
    handler.send_header("Content-Length", str(10**12))
    handler.end_headers()


def leading_away(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "ftp://127.0.0.1/")
    handler.end_headers()


SERVERS: dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]] = {
    "endless": (endless, "it has more than 100,000 bytes"),
    "a byte at a time": (trickling, "too slow: "),
    "headers at a time": (slow_headers, "nothing arrives for 1 s"),
    "shorter than it says": (lying, "it ends after 5 of 1,000 bytes"),
    "too large by what it says": (huge, "it has 1,000,000,000,000 bytes, more than 100,000"),
    "leads to another kind of address": (leading_away, "it leads to ftp:"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_servers_that_send_badly(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, reason = SERVERS[kind]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if send is not leading_away:
                self.send_response(200)
            with suppress(OSError):
                send(self)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr("tools.registry.transfer.WINDOW", 1.0)
    monkeypatch.setattr("tools.registry.index.LARGEST_TEXT", 100_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    try:
        with pytest.raises(ValueError, match=f"model_info.json: cannot be read, .*({reason})"):
            fetch("toy", registry=f"http://127.0.0.1:{server.server_port}", output=str(home))
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - start < 10
    assert list(home.iterdir()) == []


def test_what_a_killed_call_left_is_removed_unless_it_is_held(dist: Path, home: Path) -> None:
    left, held = home / ".toy.fetch-killed", home / ".toy.fetch-running"
    for folder in (left, held):
        (folder / "unpacked").mkdir(parents=True)
        (folder / "lock").touch()
    with FileLock(held / "lock"):
        fetch("toy", registry=str(dist), output=str(home))
    assert {path.name for path in home.iterdir()} == {"toy", held.name}
