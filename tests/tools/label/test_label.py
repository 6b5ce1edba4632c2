"""The app folder of a MONAI Label server, and the command that starts it; the server itself has tests of its own."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tools.label import label, prepare

TEXT = "what the user has made of it"


def make_bundle(parent: Path, name: str = "toy", *, version: str = "0.1.0", weights: tuple[str, ...] = ()) -> Path:
    folder = parent / name
    files = {
        "configs/metadata.json": f'{{"version": "{version}"}}',
        "configs/train.yaml": "a: 1\n",
        "toy_net/__init__.py": "",
        "toy_net/__pycache__/x.pyc": "",
        "eval/case.csv": "patient",
    }
    for path, text in files.items() | {(f"models/{weight}", f"first {weight}") for weight in weights}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_copies_what_a_server_needs(tmp_path: Path) -> None:
    """Neither caches and results, nor states of trainings, which a training on other scans would go on with."""
    weights = ("model.pt", "locator.pt", "training_state.pt", "model_previous.pt")
    bundle = make_bundle(tmp_path, weights=weights)
    assert prepare(str(tmp_path / "app"), bundles=[str(bundle)]) == ["toy"]
    assert names(tmp_path / "app") == [
        *(f"lib/{name}.py" for name in ("__init__", "guard", "uploads", "values")),
        "main.py",
        "model/toy/configs/metadata.json",
        "model/toy/configs/train.yaml",
        "model/toy/models/locator.pt",
        "model/toy/models/model.pt",
        "model/toy/toy_net/__init__.py",
    ]


def test_what_is_there_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Retrained weights and changed settings are the user's; weights that were removed are copied again."""
    bundle, app = make_bundle(tmp_path, weights=("model.pt", "locator.pt")), tmp_path / "app"
    prepare(str(app), bundles=[str(bundle)])
    copy = app / "model/toy"
    (copy / "configs/train.yaml").write_text(TEXT)
    (copy / "models/locator.pt").unlink()
    (bundle / "models/mlruns").mkdir()
    prepare(str(app), bundles=[str(bundle)])
    assert "version" not in caplog.text
    assert (copy / "configs/train.yaml").read_text() == TEXT
    assert (copy / "models/locator.pt").read_text() == "first locator.pt"
    (copy / "models/model.pt").write_text(TEXT)
    prepare(str(app), bundles=[str(bundle)])
    assert (copy / "models/model.pt").read_text() == TEXT
    assert f"toy: served is {copy}, version 0.1.0 with its own weights, not {bundle}, version 0.1.0;" in caplog.text
    (copy / "models/model.pt").unlink()
    prepare(str(app), bundles=[str(bundle)])
    assert (copy / "models/model.pt").read_text() == "first model.pt"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_what_comes_from_elsewhere_is_named_and_not_mixed(
    version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a demo's bundle was served first: no weights of another training join it."""
    prepare(str(tmp_path / "app"), bundles=[str(make_bundle(tmp_path / "demo", weights=("model.pt",)))])
    copy, bundle = tmp_path / "app/model/toy", make_bundle(tmp_path, version=version)
    prepare(str(tmp_path / "app"), bundles=[str(bundle)])
    told = f"toy: served is {copy}, version 0.1.0 with its own weights, not {bundle}, version {version}"
    assert f"{told} without weights; to take" in caplog.text
    make_bundle(tmp_path, version=version, weights=("model.pt", "locator.pt"))
    (bundle / "models/model.pt").write_text(TEXT)
    prepare(str(tmp_path / "app"), bundles=[str(bundle)])
    assert f"{told}; to take" in caplog.text
    assert [path.name for path in (copy / "models").iterdir()] == ["model.pt"]
    (copy / "models/model.pt").unlink()
    if version != "0.1.0":
        with pytest.raises(
            ValueError, match=r"models/model.pt: there are no such weights, .* of version 0.2.0; remove"
        ):
            prepare(str(tmp_path / "app"), bundles=[str(bundle)])


def test_bundles_without_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_weights, without = make_bundle(tmp_path, "a", weights=("model.pt",)), make_bundle(tmp_path, "b")
    monkeypatch.setattr("tools.label.BUNDLES", [with_weights, without])
    assert prepare(str(tmp_path / "app")) == ["a"]
    assert "b: left out, models/model.pt does not exist" in caplog.text
    monkeypatch.setattr("tools.label.BUNDLES", [without])
    with pytest.raises(ValueError, match="no bundle has weights"):
        prepare(str(tmp_path / "app"))


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.label.ENVIRONMENT", tmp_path)
    with pytest.raises(ValueError, match=r"nothing: no bundle, .*metadata.json does not exist"):
        prepare(str(tmp_path / "app"), bundles=["nothing"])
    with pytest.raises(ValueError, match=r"toy/models/model.pt: there are no such weights"):
        prepare(str(tmp_path / "app"), bundles=[str(make_bundle(tmp_path))])
    assert not (tmp_path / "app").exists()
    with pytest.raises(ValueError, match=r"bin/python: MONAI Label is not installed there, run `make label`"):
        label(str(tmp_path))
    with pytest.raises(ValueError, match="there is no option --bundels, did you mean bundles"):
        label(str(tmp_path), bundels="toy")
    with pytest.raises(ValueError, match="data 2024 was read as int, quote it: \"'2024'\""):
        label(2024)  # type: ignore[arg-type]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    with pytest.raises(ValueError, match="name 5 was read as int, quote it"):
        label(str(tmp_path), bundles=("toy", 5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absent: is no folder of scans and no http address"):
        label(str(tmp_path / "absent"))


def test_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The server takes the place of this process; its programs are found before others of the same name."""
    started: dict[str, Any] = {}

    def execve(path: str, words: list[str], environment: dict[str, str]) -> None:
        started.update(path=path, words=words, first=environment["PATH"].split(os.pathsep)[0])
        started.update(token=environment["LABEL_TOKEN"])

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("tools.label.ENVIRONMENT", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    bundles = [make_bundle(tmp_path, name, weights=("model.pt",)) for name in ("a", "b")]
    app = str(tmp_path / "app")
    chosen: dict[str, Any] = {"bundles": ",".join(map(str, bundles)), "origins": "http://viewer:3000"}
    label(str(tmp_path), output=app, skip_trainers=True, **chosen)
    python = str(tmp_path / "bin/python")
    assert started["path"] == python
    assert started["first"] == str(tmp_path / "bin")
    assert started["words"] == [
        *(python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", str(tmp_path)),
        *("--host", "127.0.0.1", "--port", "8000", "--conf", "models", "a,b"),
        *("--conf", "origins", "http://127.0.0.1:8000,http://localhost:8000,http://viewer:3000"),
        *("--conf", "hosts", f"127.0.0.1,{socket.gethostname()},{socket.getfqdn()}", "--conf", "skip_trainers", "True"),
    ]
    assert started["token"] == ""
    assert "WARNING" not in caplog.text
    label(str(tmp_path), output=app, host="0.0.0.0", **chosen)
    assert "WARNING: whoever reaches 0.0.0.0:8000 sees all scans and changes labels: give --token" in caplog.text
    caplog.clear()
    label(str(tmp_path), output=app, host="0.0.0.0", token="secret-token", **chosen)
    assert started["token"] == "secret-token"
    assert "secret-token" not in started["words"]
    assert "WARNING" not in caplog.text
    with pytest.raises(ValueError, match="the token must be at least 8 letters, digits, - or _"):
        label(str(tmp_path), token="short")
