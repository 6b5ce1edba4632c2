"""What a request may say: names that lead nowhere else, options that are known, and values that no config computes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["ENDINGS", "is_name", "problems"]

ENDINGS = (".nii", ".nii.gz", ".nrrd")  # of scans and labels
NAMES = ("image", "id", "label", "tag", "model", "strategy", "method", "user")  # in paths and queries
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)(\.|$)", re.IGNORECASE)
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Rule = Callable[[Any], bool]


def is_name(value: object) -> bool:
    """Whether a text names something in one folder on every system, and nothing outside of it."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 150
        and re.search(r'[\0-\x1f\x7f<>:"/\\|?*]|\.\.|^[ .$@%-]|[ .]$', value) is None
        and _DEVICE.match(value) is None
    )


def _fits(pattern: str) -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "false")


def _is_whole(lowest: int, highest: int) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value < 1


def _one_or_first(rule: Rule) -> Rule:
    """A viewer that lets nobody choose sends all that is offered; MONAI Label takes the first."""
    return lambda value: all(map(rule, value)) and bool(value) if isinstance(value, list) else rule(value)


def _is_plain(value: object) -> bool:
    """Texts, numbers and what lists and objects make of them, no deeper than labels are described."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > 8:
            return False
        if isinstance(part, dict | list):
            waiting += [(inner, depth + 1) for inner in (part.values() if isinstance(part, dict) else part)]
    return True


TEXT = _fits(r"[\w .:()/\[\]-]{0,200}")  # of names of devices, clients and experiments: no `$`, `@` or `%`
COMMON: dict[str, Rule] = {"client_id": lambda value: value is None or TEXT(value), "device": _one_or_first(TEXT)}
MODEL: dict[str, Rule] = {**COMMON, "model_filename": _one_or_first(_fits(r"\w[\w.-]*\.pt"))}
SEVERAL: dict[str, Rule] = {"multi_gpu": _is_flag, "gpus": _fits(r"|all|\d+(,\d+)*")}
INFER: dict[str, Rule] = {
    **MODEL,
    "label_info": _is_plain,
    "result_extension": lambda value: value is None or value in ENDINGS,
    "result_dtype": _fits(r"u?int(8|16|32)|float32"),
    "result_compress": _is_flag,
    "restore_label_idx": _is_flag,
    "largest_cc": _is_flag,
}
BATCH: dict[str, Rule] = {
    **MODEL,
    **SEVERAL,
    "images": lambda value: value in ("all", "labeled", "unlabeled") or _one_or_first(is_name)(value),
    "label_tag": is_name,
    "save_label": _is_flag,
    "logging": _fits(r"DEBUG|INFO|WARNING|ERROR"),
    "max_workers": _is_whole(0, 64),
    "max_batch_size": _is_whole(0, 10**6),
}
TRAIN: dict[str, Rule] = {
    **MODEL,
    **SEVERAL,
    "pretrained": _is_flag,
    "max_epochs": _is_whole(1, 10**6),
    "val_split": _is_share,
    "run_id": _fits(r"|run"),
    "tracking": _one_or_first(_fits(r"|None|none|mlflow")),
    "tracking_uri": lambda value: value in (None, "", os.environ.get("MONAI_LABEL_TRACKING_URI")),
    "tracking_experiment_name": TEXT,
    "tracking_run_name": TEXT,
}
CHOICE: dict[str, Rule] = {
    **COMMON,
    "label_tag": is_name,
    "labels": _one_or_first(is_name),
    "max_samples": _is_whole(0, 10**6),
    "simulation_size": _is_whole(1, 1000),
}
OPTIONS = {"infer": INFER, "batch": BATCH, "train": TRAIN, "activelearning": CHOICE, "scoring": CHOICE}
KEPT = {"ts", "name", "path", "checksum", "strategy", "user"}  # what the store itself notes of scans and labels


def problems(
    path: str, *, names: Mapping[str, str], form: Mapping[str, Any], files: Mapping[str, str], body: object = None
) -> Iterator[str]:
    """Yields what is wrong with a request.

    Args:
        path: of the address.
        names: values in the path and in the query, by their names.
        form: values of a form but for its files.
        files: names of files by the fields of a form.
        body: content of a JSON body.
    """
    group, _, rest = path.strip("/").partition("/")
    yield from _problems_of_names(names)
    yield from _problems_of_files(group, files)
    yield from _problems_of_form(group, form)
    if group in OPTIONS and body is not None:
        several = group in ("train", "scoring") and not rest  # options by model
        parts = body if several and isinstance(body, dict) else {"": body}
        for part in parts.values():
            yield from _problems_of_options(part, OPTIONS[group])


def _problems_of_names(names: Mapping[str, str]) -> Iterator[str]:
    for name in names.keys() & {*NAMES}:
        if not (is_name(names[name]) or (name in ("image", "tag") and names[name] == "")):
            yield f"{name} {names[name]!r} is no name"
    if "session_id" in names and not (names["session_id"] == "" or _SESSION.fullmatch(names["session_id"])):
        yield f"session_id {names['session_id']!r} is none"
    if names.get("uncompress", "").lower() in ("1", "true", "on", "yes", "t", "y"):
        yield "archives are not unpacked: send one volume"


def _problems_of_files(group: str, files: Mapping[str, str]) -> Iterator[str]:
    for field, file in files.items():
        if group == "infer" and field == "label":
            yield "these bundles take no label to infer"
        elif not (is_name(re.split(r"[/\\]", file)[-1]) and "\0" not in file and file.endswith(ENDINGS)):
            yield f"file {file!r} must be a plain name that ends in {', '.join(ENDINGS)}"  # or a path: the client's


def _problems_of_form(group: str, form: Mapping[str, Any]) -> Iterator[str]:
    for field in form.keys() & {"params", "info"}:
        try:
            value = json.loads(form[field] or "{}")
        except (ValueError, RecursionError) as error:
            yield f"{field} is not JSON: {error}"
            continue
        if group == "infer":
            yield from _problems_of_options(value, INFER)
        elif not isinstance(value, dict) or not _is_plain(value):
            yield f"{field} must be an object of plain values"
        elif kept := sorted(value.keys() & KEPT):
            yield f"{field} must not have {kept[0]}"


def _problems_of_options(options: object, rules: Mapping[str, Rule]) -> Iterator[str]:
    if not isinstance(options, dict):
        yield f"options must be an object, they are {options!r:.100}"
        return
    for name, value in options.items():
        if name not in rules:
            yield f"there is no option {name!r:.100}; there are {', '.join(rules)}"
        elif not rules[name](value):
            yield f"{name} may not be {value!r:.100}"
