"""Making a registry and checking it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.support.registry_files import copy, resign, rewrite, toy_bundle, toy_registry, track
from tests.support.registry_servers import serving_folder
from tools import BUNDLES
from tools.__main__ import main
from tools.registry.build import build
from tools.registry.pack import pack
from tools.registry.verify import problems, verify


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_registry(tmp_path_factory.mktemp("toy"), url="https://host/files/")


@pytest.fixture
def dist(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "dist")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Status with which the command line ends."""
    monkeypatch.setattr(sys, "argv", ["tools", "registry", *words])
    try:
        main()
    except SystemExit as error:
        return error.code
    return 0


def test_holds_what_a_release_needs(dist: Path) -> None:
    names = {"model_info.json", "toy_v0.1.0.md", "toy_v0.1.0.zip", "toy_v0.1.0.zip.sha256"}
    assert {path.name for path in dist.iterdir()} == names
    row = json.loads((dist / "model_info.json").read_text())["toy_v0.1.0"]
    assert row["source"] == "https://host/files/toy_v0.1.0.zip"
    assert (dist / "toy_v0.1.0.md").read_text() == (
        "# toy 0.1.0\n\nToy. One convolution\n\nChanges: release 0.1.0.\n\n"
        "Needs MONAI 1.6.1, PyTorch 2.13.0 and NumPy 2.4.6. The code is under the LICENSE in the zip, "
        "the weights under the\nterms in its docs/data_license.txt. Research only, not for clinical use.\n"
    )


def test_same_bytes_again(pristine: Path, tmp_path: Path) -> None:
    again = toy_registry(tmp_path, url="https://host/files")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in pristine.iterdir()}


def test_all_that_is_missing_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = shutil.ignore_patterns("models")
    without = [Path(shutil.copytree(path, tmp_path / path.name, ignore=ignored)) for path in BUNDLES]
    monkeypatch.setattr(sys.modules["tools.registry.build"], "BUNDLES", without)
    with pytest.raises(ValueError, match="nothing is built") as error:
        build(output=str(tmp_path / "dist"))
    reason = "models/model.pt does not exist; train, convert or download it"
    assert str(error.value).splitlines()[1:] == [f"  {bundle.name}: {reason}" for bundle in BUNDLES]
    folder = toy_bundle(tmp_path, changelog={"0.0.9": "older"})
    (folder / "models/model.pt").unlink()
    with pytest.raises(ValueError, match=r"toy: models/model.pt does not exist.*\n  toy: .* no entry 0.1.0"):
        build(output=str(tmp_path / "dist"), bundles=str(folder))
    with pytest.raises(ValueError, match=r"toy: the version in configs/metadata.json must be three digits, it is None"):
        build(output=str(tmp_path / "dist"), bundles=str(toy_bundle(tmp_path / "b", version=None)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nobody: no bundle"):
        build(output=str(tmp_path / "dist"), bundles=f"{folder},nobody")
    assert not (tmp_path / "dist").exists()


def test_release_without_weights_is_not_verified(tmp_path: Path) -> None:
    folder = toy_bundle(tmp_path)
    (folder / "models/model.pt").unlink()
    pack(str(folder), str(tmp_path / "dist"))
    assert problems(str(tmp_path / "dist")) == {"toy_v0.1.0": ["models/model.pt is missing"]}


@pytest.mark.gate
def test_good_and_unfit_releases(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is built in a process of its own; only that of the second version has other weights."""
    folder = toy_bundle(tmp_path, "0.2.0")
    torch.save(torch.nn.Conv3d(1, 3, 1).state_dict(), folder / "models/model.pt")
    build(output=str(dist), bundles=str(folder), url="https://host")
    with serving_folder(dist) as address:
        assert run(monkeypatch, "verify", address) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy_v")]
    assert lines[:2] == ["toy_v0.1.0  good", "toy_v0.2.0  1 problems"]
    assert lines[2].startswith("toy_v0.2.0: its network cannot be used: ")
    assert "models/model.pt does not fit the network of train.json at 2 keys, first weight" in lines[2]
    assert len(lines) == 3


@pytest.mark.gate
def test_network_that_does_not_keep_to_its_metadata(tmp_path: Path) -> None:
    folder = toy_bundle(tmp_path)
    path = folder / "configs/metadata.json"
    content = json.loads(path.read_text())
    content["network_data_format"]["outputs"]["pred"]["num_channels"] = 5
    path.write_text(json.dumps(content))
    dist = build(output=str(tmp_path / "dist"), bundles=str(track(folder)))
    (reason,) = problems(str(dist))["toy_v0.1.0"]
    assert reason == "its network cannot be used: ValueError: output channel number `2` doesn't match: `5`."


def test_every_problem_of_a_release_is_listed(dist: Path) -> None:
    def corrupt(members: dict[str, bytes]) -> dict[str, bytes]:
        del members["toy/LICENSE"], members["toy/configs/train.json"]
        metadata = json.loads(members["toy/configs/metadata.json"]) | {"version": "0.1.1", "authors": ["a", "b"]}
        return {**members, "toy/configs/metadata.json": json.dumps(metadata).encode(), "toy/models/b.pt": b"half"}

    rewrite(dist, corrupt)
    (dist / "other_v1.0.0.zip").write_bytes(b"")
    found = problems(str(dist))
    assert found["model_info.json"] == ["has no row for other_v1.0.0.zip"]
    assert found["toy_v0.1.0"][:3] == [
        "LICENSE is missing",
        "configs/train.json is missing",
        "configs/metadata.json says version '0.1.1', the zip's name '0.1.0'",
    ]
    assert found["toy_v0.1.0"][3].startswith("models/b.pt is no plain state dict: not a torch file")
    assert "['a', 'b'] is not of type 'string'" in found["toy_v0.1.0"][4]
    assert len(found["toy_v0.1.0"]) == 5


def test_one_bad_release_does_not_hide_the_others(dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(output=str(dist), bundles=str(toy_bundle(tmp_path, "0.2.0")))
    rewrite(dist, lambda members: {**members, "toy/configs/metadata.json": b'{"version": "0.1.0", "changelog": null}'})

    def network(folder: Path) -> list[str]:
        raise RecursionError("too deep")

    monkeypatch.setattr(sys.modules["tools.registry.verify"], "_network_problems", network)
    found = problems(str(dist))
    assert found["toy_v0.1.0"][0] == "configs/metadata.json has no entry 0.1.0 in its changelog"
    assert found["toy_v0.2.0"] == ["cannot be checked, RecursionError: too deep"]


def test_sums(dist: Path) -> None:
    content = bytearray((dist / "toy_v0.1.0.zip").read_bytes())
    content[200] ^= 1
    (dist / "toy_v0.1.0.zip").write_bytes(content)
    assert "its SHA-256 is not that of toy_v0.1.0.zip.sha256" in problems(str(dist))["toy_v0.1.0"][0]
    resign(dist)  # the registry now vouches for it, the zip itself does not
    assert "truncated or damaged" in problems(str(dist))["toy_v0.1.0"][0]
    (dist / "toy_v0.1.0.zip.sha256").write_text("0" * 64 + "  other.zip\n")
    assert "must hold one line" in problems(str(dist))["toy_v0.1.0"][0]
    (dist / "toy_v0.1.0.zip").unlink()
    assert "toy_v0.1.0.zip does not exist" in problems(str(dist))["toy_v0.1.0"][0]


def test_sha1_of_the_index(dist: Path) -> None:
    rows = json.loads((dist / "model_info.json").read_text())
    rows["toy_v0.1.0"]["checksum"] = "0" * 40
    (dist / "model_info.json").write_text(json.dumps(rows))
    assert problems(str(dist)) == {"toy_v0.1.0": ["its SHA-1 is not that of model_info.json"]}


def test_index_that_monai_could_not_read(dist: Path) -> None:
    rows = {
        "atrial_vnet_v0.1.0": {"checksum": "0", "source": "x/atrial_vnet_v0.1.0.zip"},
        "../up_v0.1.0": {"checksum": "0", "source": "x/../up_v0.1.0.zip"},
        "toy_v0.10.0": {"checksum": "0", "source": "x/toy_v0.10.0.zip"},
        "none_v0.1.0": {"checksum": "0"},
        "toy_v0.1.0": {"checksum": "0", "source": "https://host/toy_v0.2.0.zip"},
    }
    (dist / "model_info.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="rows that cannot be used") as error:
        verify(str(dist))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == list(rows)
    (dist / "model_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_info.json: not JSON"):
        verify(str(dist))
    with pytest.raises(ValueError, match=r"model_info.json: cannot be read, .*No such file"):
        verify(str(dist / "nowhere"))
    with serving_folder(dist) as address, pytest.raises(ValueError, match="cannot be read, HTTP Error 404"):
        verify(f"{address}/nowhere")


def test_command_line(dist: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    shown = "".join(capfd.readouterr())
    assert all(f"     {verb}\n" in shown for verb in ("build", "fetch", "publish", "verify"))
    assert "cannot be read" in str(run(monkeypatch, "verify", str(dist / "nowhere")))
    assert "no bundle" in str(run(monkeypatch, "build", "--output", str(dist), "--bundles", "a,b"))
    assert run(monkeypatch, "fetch", "toy", "--registry", str(dist), "--output", str(dist / "home")) == 0
    assert (dist / "home/toy/LICENSE").is_file()
