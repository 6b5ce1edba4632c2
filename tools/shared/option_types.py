"""What a setting of a config can be: the kind of its default, and the ranges of those that many bundles have."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["OFF", "PATHS", "UNKNOWN", "UnfitError", "as_it_is", "fitted", "is_expression", "is_plain", "literal_of"]

UNKNOWN: Any = object()  # the default of what can be anything
OFF: Any = object()  # among the defaults of what can be switched off: null and false fit too
NEEDED = {"bundle_root", "ckpt_dir", "output_dir", "dataset_dir", "weights", "state_file"}
PATHS = NEEDED | {"split_file", "datalist", "pseudo_labels", "soft_labels", "intensity_file", "figure_file", "start"}
PATHS |= {"teacher_weights", "student_weights", "locator_weights", "default_locator"}
FOLDERS, EITHER = {"ckpt_dir", "output_dir"}, {"dataset_dir", "bundle_root", "soft_labels"}  # files: all others
SIZES = ("patch_size", "coarse_size", "cascade_size", "size", "canvas")
SPACINGS = ("pixdim", "coarse_pixdim")
KEPT = -1  # a voxel size that says: the scan's own
REAL = {"timeout", "minimum_enhancing", "full_background", "ratios"}  # whole by default alone
COUNTS = "max_epochs val_interval batch_size patches_per_case epoch_length draws slices batch_tiles batch_voxels shifts"
NATURAL = "seed num_workers workers refinements warmup_epochs cval components dilate noise rotation learning_rate"
FRACTIONS = "cache_rate dropout threshold fraction ema_momentum empty_slices blur low_resolution gamma"
ABOVE_ZERO = math.ulp(0.0)
RANGES = dict.fromkeys((*COUNTS.split(), *SIZES, "tile"), (1.0, math.inf))
RANGES |= dict.fromkeys(NATURAL.split(), (0.0, math.inf)) | dict.fromkeys(FRACTIONS.split(), (0.0, 1.0))
RANGES |= dict.fromkeys(("timeout", *SPACINGS), (ABOVE_ZERO, math.inf))
LITERALS: dict[str, bool | None] = dict.fromkeys(("true", "True", "TRUE"), True)
LITERALS |= dict.fromkeys(("false", "False", "FALSE"), False)
LITERALS |= {"null": None, "None": None}  # not "none", which some settings know as a word


class UnfitError(ValueError):
    """A value is not what a setting takes; the message says what it takes."""


def is_plain(value: Any) -> bool:
    """Returns whether a default says of which kind a setting is."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | dict)


def is_expression(value: Any) -> bool:
    """Returns whether a value refers to other items of a config, or is computed."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%") and len(value) > 1


def is_component(value: Any) -> bool:
    """Returns whether a value is built by MONAI from a class or a function that it names."""
    return isinstance(value, Mapping) and "_target_" in value


def literal_of(value: Any) -> Any:
    """Returns what a text such as `true` or `None` stands for; everything else as it is."""
    return LITERALS.get(value, value) if isinstance(value, str) else value


def as_it_is(value: Any) -> Any:
    """Returns a value with its texts so that MONAI's parser leaves `#` in them, of which it would make `::`."""
    if isinstance(value, Mapping):
        return {key: as_it_is(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_it_is(item) for item in value]
    if isinstance(value, str) and "#" in value and not is_expression(value):
        return "$" + repr(value).replace("#", r"\x23").replace("@", r"\x40")
    return value


def fitted(name: str, value: Any, *, defaults: Sequence[Any], typed: str | None = None) -> Any:
    """Returns `value` as a setting takes it; the same object where nothing had to be changed.

    Args:
        name: id of the setting, with `::` of a component's parameter, whose default may say 0 for 0.0 or 1 for [1].
        value: what it was given.
        defaults: values that it has in the config files, first the one that counts; `UNKNOWN` fits everything.
        typed: the word on the command line, when the value is from there.

    Raises:
        UnfitError: when it is of another kind than every default, or out of range.
    """
    if is_expression(value) or is_component(value):
        return value
    if name in PATHS and not all(isinstance(default, bool) for default in defaults):
        return _path(name, value, typed)
    if name == "device":
        return _device(value)
    literal = literal_of(value)
    if _switches_off(literal, defaults):
        return literal
    return _fitted_to_first(name, value, defaults, typed=typed)


def _switches_off(literal: Any, defaults: Sequence[Any]) -> bool:
    return (literal is None and None in defaults) or (OFF in defaults and (literal is None or literal is False))


def _fitted_to_first(name: str, value: Any, defaults: Sequence[Any], *, typed: str | None) -> Any:
    """The value as of the first kind that it fits; where it fits none, the reason is that of the first."""
    kinds = [default for default in defaults if default is not None and default is not OFF]
    if not kinds:
        return value
    reasons = []
    for default in kinds:
        try:
            return _in_range(name, _alike(name, value, default, typed=typed))
        except UnfitError as error:
            reasons.append(error)
    raise reasons[0]


def _alike(name: str, value: Any, default: Any, *, typed: str | None) -> Any:
    if default is UNKNOWN:
        return literal_of(value)
    if isinstance(default, bool):
        return _truth(value)
    strict = "::" not in name and name not in REAL
    if isinstance(default, list | tuple):
        return _list(value, default, length=len(default) if name in SIZES + SPACINGS else None, strict=strict)
    return _alike_one(name, value, default, typed=typed, strict=strict)


def _truth(value: Any) -> bool:
    if isinstance(literal := literal_of(value), bool):
        return literal
    raise UnfitError("must be true or false")


def _alike_one(name: str, value: Any, default: Any, *, typed: str | None, strict: bool) -> Any:
    if "::" in name and isinstance(value, list | tuple):
        return [item if isinstance(item, Mapping) else _alike(name, item, default, typed=None) for item in value]
    if isinstance(default, int | float):
        return _number(value, example=default, strict=strict)
    if isinstance(default, str):
        return _text(value, typed, example=default)
    if not isinstance(value, Mapping):
        raise UnfitError("must be a mapping in quotation marks, such as \"{'name': 'value'}\"")
    return value


def _number(value: Any, *, example: float, strict: bool) -> float:
    """A number of the example's type; where that is whole and not `strict`, parts of one will do too."""
    number, whole = _finite(value), isinstance(example, int)
    if number is None or (whole and strict and number != int(number)):
        raise UnfitError(f"must be a {'whole ' if whole and strict else ''}number such as {example}")
    return int(number) if whole and number == int(number) else float(number)


def _finite(value: Any) -> float | None:
    try:
        number: float = float(value) if isinstance(value, str) else value  # 1e-3 is a text in YAML
        return number if math.isfinite(number) and not isinstance(number, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _list(value: Any, default: Sequence[Any], *, length: int | None, strict: bool) -> list[Any]:
    kind = _kind_of(default)
    what = f"a list of {f'{length} ' if length else ''}{kind}"
    rule = f"must be {what}{f' such as {list(default)}' if default else ''}, in quotation marks"
    fits = isinstance(value, list | tuple) and len(value) == (length or len(value))
    if not fits or (kind == "texts" and not all(isinstance(item, str) for item in value)):
        raise UnfitError(rule)
    return _numbers(value, default, strict=strict, rule=rule) if kind == "numbers" else list(value)


def _kind_of(items: Sequence[Any]) -> str:
    if items and all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        return "numbers"
    return "texts" if items and all(isinstance(item, str) and not is_expression(item) for item in items) else "values"


def _numbers(value: Sequence[Any], default: Sequence[Any], *, strict: bool, rule: str) -> list[Any]:
    example = default[0] if all(isinstance(item, int) for item in default) else float(default[0])
    try:
        return [_number(item, example=example, strict=strict) for item in value]
    except UnfitError as error:
        raise UnfitError(f"{rule}: each {error}") from None


def _text(value: Any, typed: str | None, *, example: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnfitError(f"must be a text such as {example}")
    return _as_typed(value, typed)


def _as_typed(value: Any, typed: str | None) -> str:
    """The text as it was typed, without the quotation marks that Fire takes away."""
    text = str(value) if typed is None or (isinstance(value, str) and typed[:1] in ("'", '"')) else typed
    return value if isinstance(value, str) and value == text else text


def _in_range(name: str, value: Any) -> Any:
    if name in RANGES:
        least, most = RANGES[name]
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int | float) for item in numbers):
            raise UnfitError("must be a number, or a list of numbers")
        if not all(least <= item <= most or (name, item) == ("pixdim", KEPT) for item in numbers):
            raise UnfitError(_rule_of_range(least, most))
    return value


def _rule_of_range(least: float, most: float) -> str:
    low = "more than 0" if least == ABOVE_ZERO else f"at least {least:g}"
    return f"must be {low}" if most == math.inf else f"must be between {least:g} and {most:g}"


def _device(value: Any) -> Any:
    name = f"cuda:{value}" if isinstance(value, int) and not isinstance(value, bool) else value
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    rule = f"must be a device that is here: {', '.join(here)}"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise UnfitError(rule)
        torch.empty(1, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise UnfitError(rule) from error
    return name


def _path(name: str, value: Any, typed: str | None) -> Any:
    if literal_of(value) is not True:
        value = literal_of(value)
    if name not in NEEDED and (value is None or value is False):
        return value
    text = _text_of_path(value, typed)
    try:
        _check_place(name, Path(text))
    except UnfitError:
        raise
    except (OSError, ValueError) as error:
        raise UnfitError(f"must be a path ({error})") from error
    return text


def _text_of_path(value: Any, typed: str | None) -> str:
    bare = value is True and typed in (None, "true")  # an option that no word follows
    if value is None or bare or (typed is None and not isinstance(value, str | int | float | os.PathLike)):
        raise UnfitError("must be a path")
    text = _as_typed(value, typed)
    text = str(Path(text).expanduser()) if text.startswith("~") else text
    if not text.strip():
        raise UnfitError("must be a path, it is empty")
    return text


def _check_place(name: str, place: Path) -> None:
    if name in FOLDERS:
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise UnfitError(f"must be a folder, {existing} is a file")
        if name == "output_dir" and not os.access(existing, os.W_OK):
            raise UnfitError(f"must be a folder that can be written, {existing} cannot")
    elif name not in EITHER and place.is_dir():
        raise UnfitError(f"must be a file, {place} is a folder")
