"""Files of weights: reading those of unknown origin without running code from them, and writing them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from tools.files import replacing

__all__ = ["read_checkpoint", "read_content", "state_dict", "write_state"]

State = Mapping[str, torch.Tensor]


def read_checkpoint(path: Path) -> object:
    """Returns the content of a torch file that holds tensors, containers, strings and numbers, NumPy's included.

    Raises:
        ValueError: if it holds anything else or is damaged; no code from the file has run then.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {refused[1]}" if refused else "it is damaged or of another kind"
        raise ValueError(f"{path}: not a torch file of tensors, numbers and strings alone, {reason}") from error


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
        if not parts and _is_state(state):
            return dict(state)
        if parts and isinstance(state, Mapping) and state.keys() == set(parts) and all(map(_is_state, state.values())):
            return {f"{part}.{key}": state[part][key] for part in parts for key in state[part]}
    wanted = f", neither as a whole nor under {', '.join(keys)}" if keys else ""
    several = f" for each of {', '.join(parts)}" if parts else ""
    held = ", ".join(map(str, content)) or "nothing named"
    raise ValueError(f"no state dict{several}{wanted}; the file holds {held}")


def write_state(state: State, path: Path, *, parts: Sequence[str] = ()) -> None:
    """Writes a state dict to a file, or each of its parts to a file `<part>.pth` of a folder."""
    for part in parts:
        inside = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        write_state(inside, path / f"{part}.pth")
    if not parts:
        with replacing(path) as temporary, temporary.open("wb") as file:  # a path's name would enter the file's bytes
            torch.save(dict(state), file)


def _is_state(content: object) -> TypeGuard[State]:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def _numpy_scalar(dtype: np.dtype[np.generic], data: bytes) -> object:
    """Stands in for the unpickling function of NumPy scalars; objects have no bytes, so `frombuffer` refuses them."""
    return np.frombuffer(data, dtype)[0]


_NUMPY_SCALARS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]
