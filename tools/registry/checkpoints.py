"""Files of weights: reading those of unknown origin without running code from them, and writing them."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
import torch

from tools.registry.zip_limits import collisions, growing
from tools.shared.files import atomic_write

__all__ = ["read_checkpoint", "read_content", "state_dict", "unusable", "write_state"]

State = Mapping[str, torch.Tensor]

LARGEST_PICKLE = 2**24  # bytes of names, shapes and numbers; the tensors lie beside it
LARGEST_TEXTS = 2**28  # bytes that texts may take if every step repeats the longest one
_LEGACY_PICKLES = 5  # that torch wrote before it wrote zips
# What dense tensors, numbers and texts need; other things that `weights_only` lets pass can grow in memory.
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|torch (Size|device|\w+Storage|bool|[a-z]+\d+\w*)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|_codecs encode|numpy(\.\S+)? \w+"
)
_GROWING_CODECS = {"hex", "base64", "uu", "quopri", "quotedprintable"}


def read_checkpoint(path: Path) -> object:
    """Returns the content of a torch file that holds tensors, containers, strings and numbers, NumPy's included.

    Raises:
        ValueError: if it holds anything else, is damaged, or would take more memory than it has bytes; no code from the
            file has run then.
    """
    try:
        if not (reason := next(_growth(path), "")):
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                content = torch.load(path, map_location="cpu", weights_only=True)
            reason = next((f"{name} is larger than what is stored of it" for name in _enlarged(content, path)), "")
            if not reason:
                return content
        cause = None
    except OSError:
        raise
    except Exception as error:
        rejected = re.search(r"GLOBAL (\S+)", str(error))
        reason, cause = f"it asks for {rejected[1]}" if rejected else "it is damaged or of another kind", error
    raise ValueError(f"{path}: not a torch file of tensors, numbers and strings alone, {reason}") from cause


def read_content(path: Path, parts: Sequence[str] = ()) -> object:
    """Returns the content of a torch file, or of the files `<part>.pth` of a folder by part; see `read_checkpoint`."""
    if parts and path.is_dir():
        return {part: read_checkpoint(path / f"{part}.pth") for part in parts}
    return read_checkpoint(path)


def state_dict(checkpoint: object, *, keys: Sequence[str] = (), parts: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Returns the state dict that a checkpoint is, or holds under one of `keys`.

    Args:
        checkpoint: content of a file.
        keys: entries that may hold it.
        parts: names of the state dicts that are wanted instead of one; they are joined, the name before every key.

    Raises:
        ValueError: if there is none.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    for state in (*(content[key] for key in keys if key in content), content):
        if (found := _joined(state, parts)) is not None:
            return found
    wanted = f", neither as a whole nor under {', '.join(keys)}" if keys else ""
    several = f" for each of {', '.join(parts)}" if parts else ""
    held = ", ".join(map(str, content)) or "nothing named"
    raise ValueError(f"no state dict{several}{wanted}; the file holds {held}")


def _joined(state: Any, parts: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """A state dict, or the parts of one joined; `None` of anything else."""
    if not parts:
        return dict(state) if _is_state(state) else None
    if isinstance(state, Mapping) and state.keys() == set(parts) and all(map(_is_state, state.values())):
        return {f"{part}.{key}": state[part][key] for part in parts for key in state[part]}
    return None


def write_state(state: State, path: Path, *, parts: Sequence[str] = ()) -> None:
    """Writes a state dict to a file, or each of its parts to a file `<part>.pth` of a folder."""
    for part in parts:
        inside = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        write_state(inside, path / f"{part}.pth")
    if not parts:
        # a path's name would enter the file's bytes
        with atomic_write(path) as partial, partial.open("wb") as file:
            torch.save(dict(state), file)


def unusable(state: State, *, whole: Collection[str] = ()) -> Iterator[str]:
    """Yields the names of tensors that are no finite real numbers; whole numbers are those named only."""
    for name, tensor in state.items():
        real = tensor.is_floating_point()
        if not (real or name in whole) or not torch.isfinite(tensor.float() if real else tensor).all():
            yield f"{name} ({tensor.dtype})"


def _growth(path: Path) -> Iterator[str]:
    """Yields why loading the file would take more memory than it has bytes, by what it says of itself."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # torch's own test
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                yield from _growth_of_pickle(file)
            return
    with zipfile.ZipFile(path) as archive:
        yield from (f"{name} in it: {reason}" for name, reason in (*growing(archive), *collisions(archive)))
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield from _growth_of_pickle(archive.open(name))


def _growth_of_pickle(file: IO[bytes]) -> Iterator[str]:
    longest = steps = 0
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            yield f"it asks for {str(argument).replace(' ', '.')}"
        elif isinstance(argument, str):
            longest = max(longest, len(argument))
            if re.sub(r"[\W_]|codec$", "", argument.lower()) in _GROWING_CODECS:
                yield f"it asks for the codec {argument}"
        steps += opcode.name == "REDUCE"
        if longest * steps > LARGEST_TEXTS or (position or 0) > LARGEST_PICKLE:
            yield "its names, shapes and numbers are too large"


def _enlarged(content: object, path: Path) -> Iterator[str]:
    """Yields the names of tensors in dicts, lists and tuples that have more bytes than what is stored of them."""
    waiting, seen, size = [("content", content)], set[int](), path.stat().st_size
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor) and value.nbytes > min(value.untyped_storage().nbytes(), size):
            yield name
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{key}".removeprefix("content."), part) for key, part in parts]


def _is_state(content: object) -> TypeGuard[State]:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def _numpy_scalar(dtype: np.dtype[np.generic], data: bytes) -> object:
    """Stands in for the unpickling function of NumPy scalars; objects have no bytes, so `frombuffer` rejects them."""
    return np.frombuffer(data, dtype)[0]


_NUMPY_SCALARS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]
