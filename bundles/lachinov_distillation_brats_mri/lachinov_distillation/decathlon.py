"""What the Medical Segmentation Decathlon holds of brain tumours: its labels, and the channels of its volumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from .shared.lists import read_json
from .shared.validation import InputError

__all__ = ["DECATHLON_LABELS", "channels"]

logger = logging.getLogger(__name__)

DECATHLON_LABELS = ["ED", "NCR", "ET"]
# Channels of a Decathlon volume in their order, and their names in its dataset.json.
CHANNELS = {"flair": ("flair",), "t1": ("t1w", "t1"), "t1ce": ("t1gd", "t1ce"), "t2": ("t2w", "t2")}


def channels(folder: Path, sequences: Sequence[str]) -> list[str]:
    """Returns the order of the channels of 4D volumes, as dataset.json in or above their folder has it if there is one.

    Raises:
        InputError: when the volumes lack one of `sequences`, or dataset.json has another order or is damaged.
    """
    names = list(CHANNELS)
    if missing := [name for name in sequences if name not in names]:
        raise InputError([("", str(folder), f"4D volumes hold {', '.join(names)}, not {', '.join(missing)}")])
    description = next((p for p in (folder / "dataset.json", folder.parent / "dataset.json") if p.is_file()), None)
    if description is None:
        logger.warning("%s: no dataset.json, channels are taken to be %s", folder, ", ".join(names))
        return names
    found = _described(description)
    if list(map(_own_name, found)) != names:
        rule = f"channels must be {', '.join(names)}, they are {', '.join(found)}"
        raise InputError([("", str(description), rule)])
    return names


def _described(description: Path) -> list[str]:
    try:
        modality = read_json(description, kind="description")["modality"]
        return [str(modality[str(index)]) for index in range(len(modality))]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError([("", str(description), f"has no list of channels under 'modality' ({error!r})")]) from error


def _own_name(channel: str) -> str:
    return next((name for name, known in CHANNELS.items() if channel.lower() in known), channel)
