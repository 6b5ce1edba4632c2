from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.registry.checkpoints import read_checkpoint


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model_state": {"w": torch.ones(1)}, "extra": Hostile()}
    torch.save(content, "bad.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"bad.pt: not a torch file .*, it asks for \w+\.mkdir"):
        read_checkpoint(Path("bad.pt"))
    assert not Path("ran").exists()


def test_object_scalars_are_refused(tmp_path: Path) -> None:
    class ObjectScalar:
        def __reduce__(self) -> tuple[object, ...]:
            return np.float64(1).__reduce__()[0], (np.dtype("O"), b"\0" * 8)

    with (tmp_path / "bad.pt").open("wb") as file:
        torch.save({"mean": ObjectScalar()}, file)
    with pytest.raises(ValueError, match=r"bad\.pt: not a torch file"):
        read_checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps(print)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pt: not a torch file"):
        read_checkpoint(tmp_path / "bad.pt")


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "bad.pt")
    (tmp_path / "bad.pt").write_bytes((tmp_path / "bad.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(tmp_path / "bad.pt")


def test_numpy_scalars_load(tmp_path: Path) -> None:
    scalars = [np.float64(60.25), np.float32(0.5), np.int64(-3), np.bool_(True)]
    torch.save({"scalars": scalars, "state": {"w": torch.ones(2)}}, tmp_path / "in.pt")
    loaded = read_checkpoint(tmp_path / "in.pt")
    assert isinstance(loaded, dict)
    assert loaded["scalars"] == scalars
    assert [type(value) for value in loaded["scalars"]] == [type(value) for value in scalars]


def deflated(path: Path) -> None:
    torch.save({"w": torch.zeros(1000, 1000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def doubling(path: Path) -> None:
    """NumPy's scalars need the function that this legacy file calls with a codec that doubles."""
    path.write_bytes(b"\x80\x02c_codecs\nencode\nC\x04abcdX\x03\x00\x00\x00hex\x86R.")


EXPANDING: dict[str, tuple[Callable[[Path], None], str]] = {
    "compressed": (deflated, "data.pkl in it: compressed"),
    "strides": (lambda path: torch.save({"w": torch.zeros(1).expand(10**5, 10**5)}, path), "w is larger than what"),
    "sparse": (
        lambda path: torch.save(torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (10**12,)), path),
        "it asks for torch._utils._rebuild_sparse_tensor",
    ),
    "codec": (doubling, "it asks for the codec hex"),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_small_files_that_expand_are_refused(name: str, tmp_path: Path) -> None:
    make, reason = EXPANDING[name]
    make(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"bad\.pt: not a torch file of tensors.*, .*{reason}"):
        read_checkpoint(tmp_path / "bad.pt")
