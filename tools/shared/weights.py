"""Files of tensors: nothing is loaded but what the file itself holds, and no weights but numbers that fit."""

from __future__ import annotations

import logging
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from .validation import InputError

__all__ = ["load_weights", "read_tensors"]

logger = logging.getLogger(__name__)

SHOWN = 8  # of each kind of mistakes
LARGEST_PICKLE = 2**24  # bytes of names, shapes and numbers; the tensors lie beside it
_LEGACY_PICKLES = 5  # that torch wrote before it wrote zips
# What `torch.save` needs for dense tensors in dicts and lists; what else `weights_only` lets pass can grow in memory.
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|torch (Size|device|\w+Storage|bool|[a-z]+\d+\w*)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)


def read_tensors(path: Path, *, mmap: bool = False) -> Any:
    """Returns the content of a file of tensors, on the CPU; with `mmap` a tensor is read once it is used.

    Raises:
        InputError: when the file is damaged, of another kind, or would take more memory than it has bytes.
    """
    rule = "cannot be read as a file of tensors: "
    try:
        problem = _growth(path)
        content = None if problem else torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        rule += f"damaged or of another kind ({type(error).__name__})"
        raise InputError([("", str(path), rule)]) from error
    size = path.stat().st_size
    for name, tensor in _tensors(content):
        if tensor.nbytes > min(tensor.untyped_storage().nbytes(), size):
            problem = f"{name} is larger than what is stored of it"
    if problem:
        raise InputError([("", str(path), rule + problem)])
    return content


def load_weights(network: nn.Module, path: str | Path, *, new_classes: bool = False) -> nn.Module:
    """Returns `network` with the weights of `path`, a flat state dict that fits exactly.

    Floating-point weights may have another precision than the network, which keeps its own.

    Args:
        network: where it has an attribute `class_layers`, that is the pattern of the beginnings of the names of those
            weights whose shape depends on the number of classes.
        path: the file.
        new_classes: whether the file may be of another number of classes: then the weights of `class_layers` that have
            another shape stay as they were drawn, and a line in the log names them.

    Raises:
        InputError: when there is no such file, it is damaged or no flat state dict, names, shapes or kinds of numbers
            differ, or a weight is NaN or infinite in the network's precision (the message lists them).
    """
    found = _flat(path)
    own = network.state_dict()
    drawn = _of_classes(network, own, found) if new_classes else []
    found = {**found, **{name: own[name] for name in drawn}}
    wrong = _misfits(found, own)
    if wrong:
        kind = type(network).__name__
        raise InputError(("", str(path), f"does not fit the chosen {kind}: {entry}") for entry in wrong)
    network.load_state_dict(found)
    if drawn:
        logger.info("%s: of another number of classes, drawn anew: %s", path, ", ".join(drawn))
    return network


def _flat(path: str | Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a file."""
    if not Path(path).is_file():
        raise InputError([("", str(path), "there are no such weights: train, convert or download them first")])
    found = read_tensors(Path(path))
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        what = (
            f"has {', '.join(map(str, [*found][:SHOWN]))}"
            if isinstance(found, Mapping)
            else f"is a {type(found).__name__}"
        )
        raise InputError([("", str(path), f"is no flat state dict of tensors, it {what}")])
    return found


def _of_classes(network: nn.Module, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the weights that have another shape, and depend on the number of classes."""
    pattern = re.compile(getattr(network, "class_layers", "(?!)"))
    shared = [name for name in own if name in found and pattern.match(name)]
    return [name for name in shared if own[name].shape != found[name].shape]


def _misfits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    kinds = (
        [f"missing {name}" for name in expected.keys() - found.keys()],
        [f"unknown {name}" for name in found.keys() - expected.keys()],
        [
            f"{name} {rule}"
            for name in expected.keys() & found.keys()
            for rule in _rules_broken_by(found[name], expected[name])
        ],
    )
    return [entry for entries in kinds for entry in sorted(entries)[:SHOWN]]


def _growth(path: Path) -> str | None:
    """Why the file is damaged, or loading it would take more memory than it has bytes, by what it says of itself."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # torch's own test
            file.seek(0)
            return next((problem for _ in range(_LEGACY_PICKLES) if (problem := _growth_of_pickle(file))), None)
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if problem := _growth_of_members(members):
            return problem
        if damaged := archive.testzip():  # torch does not look at the checksums
            return f"{damaged} is damaged, its checksum is another one"
        pickles = [member for member in members if member.filename.endswith(".pkl")]
        return next((problem for member in pickles if (problem := _growth_of_pickle(archive.open(member)))), None)


def _growth_of_members(members: Sequence[zipfile.ZipInfo]) -> str | None:
    end = 0
    if len({member.filename.casefold() for member in members}) < len(members):
        return "two members have the same name"
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            return f"{member.filename} is compressed, torch.save stores tensors as they are"
        if member.header_offset < end:
            return f"{member.filename} overlaps the member before it"
        end = member.header_offset + member.file_size
    return None


def _growth_of_pickle(file: IO[bytes]) -> str | None:
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            return f"it asks for {str(argument).replace(' ', '.')}, which is no dense tensor, text or number"
        if position is not None and position > LARGEST_PICKLE:
            return f"its names, shapes and numbers have more than {LARGEST_PICKLE} bytes"
    return None


def _tensors(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors in dicts, lists and tuples, each container once, with their names."""
    waiting, seen = [("content", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{key}".removeprefix("content."), part) for key, part in parts]


def _rules_broken_by(found: torch.Tensor, expected: torch.Tensor) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"has shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    elif found.is_complex() or (expected.is_floating_point() and not found.is_floating_point()):
        yield f"is {found.dtype} instead of {expected.dtype}"
    elif not torch.isfinite(found.to(expected.dtype) if expected.is_floating_point() else found).all():
        yield "holds NaN or infinite numbers"
