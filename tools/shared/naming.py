"""How the sequences of a brain, and the classes of a tumour, are called in file names and in lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .descriptions import CHANNEL, channels_beside
from .scans import stem
from .validation import InputError

__all__ = ["CHANNELS", "CLASSES", "ENDINGS", "SUFFIX", "beginning_of", "channel_files", "pattern_of", "stack_of"]

SUFFIX = r"\.nii(?:\.gz)?"
# How file names end, by year of the challenge: until 2021 ID_t1ce.nii.gz, from 2023 on ID-t1c.nii.gz.
ENDINGS = {
    "flair": ("flair", "t2f"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t1": ("t1", "t1n"),
    "t2": ("t2", "t2w"),
    "label": ("seg",),
}

# What else sequences and classes are called in lists; with `*`, regions of several values.
CHANNELS = {
    "flair": ("t2f", "t2flair", "t2-weighted flair"),
    "t1ce": ("t1c", "t1gd", "t1wce", "t1w gd", "t1 contrast enhanced", "t1 post-contrast"),
    "t1": ("t1w", "t1n", "t1-weighted"),
    "t2": ("t2w", "t2-weighted"),
}
CLASSES = {
    "NCR": (
        "non-enhancing tumour",
        "non-enhancing tumour core",
        "necrotic core",
        "necrosis",
        "NCR/NET",
        "tumour core*",
    ),
    "ED": ("oedema", "peritumoural oedema", "SNFH", "whole tumour*", "WT*"),
    "ET": ("enhancing tumour", "AT"),
}


def pattern_of(sequence: str) -> str:
    """Returns the pattern of what the name of a file of a sequence may end in."""
    return "|".join(map(re.escape, ENDINGS.get(sequence, (sequence,))))


def beginning_of(path: Path, sequences: Sequence[str]) -> str | None:
    """Returns what stands before the name of a sequence in a file's name, `None` when it names none of them."""
    endings = "|".join(pattern_of(name) for name in sequences)
    match = re.fullmatch(rf"(.*[_-]|)(?:{endings}){SUFFIX}", path.name, re.IGNORECASE)
    return match[1] if match else None


def channel_files(path: Path, sequences: Sequence[str]) -> dict[str, Path] | None:
    """Returns the files of the sequences of one of nnU-Net's images, as the `dataset.json` of its data set has it.

    Args:
        path: a file `<case>_0000` or of another channel, in `imagesTr` or `imagesTs`.
        sequences: those that are wanted.

    Returns:
        Path by sequence; `None` of any other file.

    Raises:
        InputError: when the data set lacks a sequence.
    """
    match = CHANNEL.fullmatch(stem(path))
    told = channels_beside(path, CHANNELS) if match else None
    if match is None or told is None:
        return None
    if lost := [name for name in sequences if name not in told]:
        raise InputError((match[1], str(path), f"has no channel {name}, but {', '.join(told)}") for name in lost)
    ending = path.name[len(stem(path)) :]
    return {name: path.with_name(f"{match[1]}_{told.index(name):04d}{ending}") for name in sequences}


def stack_of(image: str | Path, default: Sequence[str], *, told: Sequence[str] | None = None) -> tuple[list[str], bool]:
    """Returns the sequences of a 4D volume, in order, and whether it must have them all.

    They are those that its case tells, or its data set, and then all must be there; else the default.
    """
    known = told or channels_beside(Path(image).absolute(), CHANNELS)
    return list(known or default), bool(known)
