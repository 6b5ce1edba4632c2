"""Files of weights that are damaged, or small and expand, or hold what no network takes; one module in all bundles."""

from __future__ import annotations

import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tools.shared.validation import InputError
from tools.shared.weights import load_weights, read_tensors

GOOD: dict[str, Any] = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def rezip(path: Path, change: Callable[[zipfile.ZipFile, dict[str, bytes]], None]) -> None:
    """Rewrites the members of a zip, as `change` does."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        change(archive, members)


def saved(path: Path, content: Any = GOOD) -> None:
    torch.save(content, path)


def compressed(path: Path) -> None:
    saved(path, {"weight": torch.zeros(1000, 1000)})

    def deflate(archive: zipfile.ZipFile, members: dict[str, bytes]) -> None:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)

    rezip(path, deflate)
    assert path.stat().st_size < 50_000


def overlapping(path: Path) -> None:
    """All members of the directory at one place."""
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        for entry in archive.infolist():
            entry.header_offset = 0
        archive.writestr("further", b"")


def colliding(path: Path) -> None:
    saved(path)

    def twice(archive: zipfile.ZipFile, members: dict[str, bytes]) -> None:
        for name, content in [*members.items(), (next(iter(members)).upper(), b"")]:
            archive.writestr(name, content)

    rezip(path, twice)


def bytes_that_grow(path: Path) -> None:
    """A pickle that `weights_only` takes: each step doubles a text of 1 MB."""
    saved(path)

    def double(archive: zipfile.ZipFile, members: dict[str, bytes]) -> None:
        steps = b"c_codecs\nencode\nq\x01C" + b"\x04abcd" + b"X\x03\x00\x00\x00hex\x86R."
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02" + steps if name.endswith("data.pkl") else content)

    rezip(path, double)


def nested(path: Path) -> None:
    content: Any = []
    for _ in range(60):
        content = [content, content]
    saved(path, content)


def flipped(path: Path) -> None:
    """One bit of one weight; torch would load it."""
    saved(path, {"weight": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(9).numpy().tobytes()) + 6] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weight"].unique().numel() == 2


EXPANDING: dict[str, tuple[Callable[[Path], None], str]] = {
    "compressed": (compressed, "data.pkl is compressed"),
    "overlapping": (overlapping, "overlaps the member before it"),
    "names that differ in case": (colliding, "two members have the same name"),
    "strides": (lambda path: saved(path, {"weight": torch.zeros(1).expand(10**5, 10**5)}), "weight is larger than"),
    "nested strides": (lambda path: saved(path, {"a": [(torch.zeros(1).expand(9),)]}), "a.0.0 is larger than"),
    "legacy strides": (
        lambda path: torch.save(torch.zeros(1).expand(10**10), path, _use_new_zipfile_serialization=False),
        "content is larger than",
    ),
    "sparse": (
        lambda path: saved(path, torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (10**12,))),
        "asks for torch._utils._rebuild_sparse_tensor",
    ),
    "meta": (lambda path: saved(path, torch.zeros(10**10, device="meta")), "_rebuild_meta_tensor_no_storage"),
    "quantised": (
        lambda path: saved(path, torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)),
        "_rebuild_qtensor",
    ),
    "bytes": (bytes_that_grow, "asks for _codecs.encode"),
    "damaged": (flipped, "is damaged, its checksum is another one"),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_files_that_expand_or_are_damaged_are_refused(name: str, tmp_path: Path) -> None:
    make, rule = EXPANDING[name]
    path = tmp_path / "model.pt"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="cannot be read as a file of tensors: ") as caught:
        read_tensors(path)
    assert f"{path}: " in str(caught.value)
    assert rule in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_nested_lists_are_walked_once(tmp_path: Path) -> None:
    nested(tmp_path / "state.pt")
    assert len(read_tensors(tmp_path / "state.pt")) == 2


def test_what_trainings_save_is_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(2, 1, 2, 2, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    parts |= {"ordered": OrderedDict(a=torch.ones(3)[1:], size=torch.Size([1]), dtype=torch.float16)}
    for zipped in (True, False):
        torch.save(parts, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
        assert read_tensors(tmp_path / "state.pt").keys() == parts.keys()


NUMBERS = {
    "NaN": (torch.tensor([0, torch.nan]), "bias holds NaN or infinite numbers"),
    "infinite": (torch.tensor([0, torch.inf]), "bias holds NaN or infinite numbers"),
    "too large": (torch.tensor([0, 1e300], dtype=torch.float64), "bias holds NaN or infinite numbers"),
    "complex": (torch.zeros(2, dtype=torch.complex64), "bias is torch.complex64 instead of torch.float32"),
    "integers": (torch.zeros(2, dtype=torch.int64), "bias is torch.int64 instead of torch.float32"),
    "truth values": (torch.zeros(2, dtype=torch.bool), "bias is torch.bool instead of torch.float32"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_weights_that_are_no_finite_real_numbers_are_refused(name: str, tmp_path: Path) -> None:
    bias, rule = NUMBERS[name]
    saved(tmp_path / "model.pt", {**GOOD, "bias": bias})
    with pytest.raises(InputError, match=f"does not fit the chosen Linear: {rule}"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", {name: tensor.to(dtype) for name, tensor in GOOD.items()})
    network = load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    assert all(torch.equal(value, GOOD[name]) for name, value in network.state_dict().items())
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


def test_the_message_shows_how_names_differ(tmp_path: Path) -> None:
    """Of a state dict within another, and of one saved with the names that DDP gives, also where many are missing."""
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    saved(tmp_path / "state.pt", {"state_dict": network.state_dict(), "epoch": 3})
    with pytest.raises(InputError, match="no flat state dict of tensors, it has state_dict, epoch"):
        load_weights(network, tmp_path / "state.pt")
    saved(tmp_path / "ddp.pt", {f"module.{name}": value for name, value in network.state_dict().items()})
    with pytest.raises(InputError, match=r"missing 0.bias[\s\S]*unknown module.0.bias"):
        load_weights(network, tmp_path / "ddp.pt")


class Classifier(nn.Module):
    """A body, and a head with a channel for each class."""

    class_layers = r"head\."

    def __init__(self, classes: int, *, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Conv3d(1, width, 1)
        self.head = nn.Conv3d(width, classes, 1)


def test_only_the_layers_of_other_classes_are_drawn_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path, old, new = tmp_path / "model.pt", Classifier(4), Classifier(2)
    torch.save(old.state_dict(), path)
    drawn = new.head.weight.detach().clone()
    load_weights(new, path, new_classes=True)
    assert torch.equal(new.body.weight, old.body.weight)
    assert torch.equal(new.head.weight, drawn)
    assert f"{path}: of another number of classes, drawn anew: head.weight, head.bias" in caplog.text
    same = Classifier(4)
    load_weights(same, path, new_classes=True)
    assert torch.equal(same.head.weight, old.head.weight)
    with pytest.raises(InputError, match=r"head\.bias has shape \(4,\) instead of \(2,\)"):
        load_weights(Classifier(2), path)
    with pytest.raises(InputError, match=r"body\.weight has shape \(3, 1, 1, 1, 1\) instead of \(5, 1, 1, 1, 1\)"):
        load_weights(Classifier(2, width=5), path, new_classes=True)


@pytest.mark.parametrize("name", ["vnet", "cooperative", "hadnet", "lachinov", "dilated", "resnet", "unet"])
def test_every_network_starts_from_one_of_other_classes(name: str, tmp_path: Path) -> None:
    from cooperative_training.networks import CooperativeNetwork
    from ensemble_kd.networks import DilatedCNN, ResNet, UNet
    from hadnet.networks import SegmentationNetwork
    from lachinov_distillation.networks import ResUNet
    from vnet_atrial.networks import VNet

    make: dict[str, Callable[[int], nn.Module]] = {
        "vnet": lambda classes: VNet(out_channels=classes, channels=[2, 4, 8, 16, 32]),
        "cooperative": lambda classes: CooperativeNetwork(classes=classes, channels=[2, 4, 8, 8, 8]),
        "hadnet": lambda classes: SegmentationNetwork(2, classes, filters=4),
        "lachinov": lambda classes: ResUNet(2, classes, channels=[8, 8, 8, 8]),
        "dilated": lambda classes: DilatedCNN(classes, receptive_field=35, channels=4),
        "resnet": lambda classes: ResNet(3, classes, channels=8),
        "unet": lambda classes: UNet(3, classes, channels=[4, 8, 8], deep_supervision=True),
    }
    old, new = make[name](3), make[name](2)
    torch.save(old.state_dict(), tmp_path / "model.pt")
    load_weights(new, tmp_path / "model.pt", new_classes=True)
    same = [key for key, value in new.state_dict().items() if value.shape == old.state_dict()[key].shape]
    assert len(same) < len(old.state_dict())
    assert all(torch.equal(new.state_dict()[key], old.state_dict()[key]) for key in same)
