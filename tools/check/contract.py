"""What MONAI and MONAI Label look for in the configs, and how configs refer to each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.check.config import FILE_MACRO, Config, dangling, expand, merge, missing, strings
from tools.check.model import Bundle, Finding, bundle_rule

TRAIN, INFERENCE, EVALUATE = "configs/train.yaml", "configs/inference.yaml", "configs/evaluate.yaml"
KEYS = {
    TRAIN: (
        "bundle_root",
        "device",
        "dataset_dir",
        "output_dir",
        "val_interval",
        "network_def",
        "network",
        "train#trainer#max_epochs",
        "train#dataset#data",
        "train#inferer",
        "train#handlers",
        "validate#evaluator",
        "validate#handlers",
        "validate#dataset#data",
    ),
    INFERENCE: (
        "bundle_root",
        "device",
        "dataset_dir",
        "output_dir",
        "network_def",
        "preprocessing",
        "postprocessing",
        "inferer",
        "dataset",
        "evaluator",
    ),
}
RUN_IDS = {TRAIN: "training", INFERENCE: "inference", EVALUATE: "evaluating"}
WRITABLE = ("uint8", "float32")
LINES, WIDTH = {TRAIN: 200}, 125
OTHER_LINES, ALL_LINES = 120, 600
NUMBERED = re.compile(r"(?:^\+?|[@%])\w+(?:::\w+)*?::\d+(?:::|\b)")
CASTS = {"AsDiscreted": "float32", "CastToTyped": "float32", "EnsureTyped": "undefined"}  # with their default dtype


@bundle_rule
def keys(bundle: Bundle) -> Iterator[Finding]:
    """Training and inference have every id that MONAI or MONAI Label reads or sets."""
    for file, ids in KEYS.items():
        for id_ in missing(bundle.config(file), ids):
            yield file, f"has no id {id_}"


@bundle_rule
def run_ids(bundle: Bundle) -> Iterator[Finding]:
    """Each workflow runs as `run`, as MONAI Label asks, and under its own name, as people type it."""
    for file, name in RUN_IDS.items():
        config = bundle.config(file)
        if "run" not in config:
            yield file, "has no id run"
        if config.get(name) != "%run":
            yield file, f'lacks the line `{name}: "%run"`'


@bundle_rule
def same_network(bundle: Bundle) -> Iterator[Finding]:
    """Training and inference build the same network, with macros and references replaced by their targets."""
    configs = [bundle.config(file) for file in (TRAIN, INFERENCE)]
    networks = [expand(config, config.get("network_def"), path=("network_def",)) for config in configs]
    if networks[0] != networks[1]:
        yield INFERENCE, f"network_def is {networks[1]}, but {networks[0]} in {TRAIN}"


@bundle_rule
def no_file_macros(bundle: Bundle) -> Iterator[Finding]:
    """No macro reaches into another file: it would be looked up in the working directory."""
    for file in bundle.configs:
        for place, text in strings(bundle.config(file)):
            if FILE_MACRO.fullmatch(text):
                yield file, f"{'#'.join(place)} reads another file: {text}"


@bundle_rule
def references(bundle: Bundle) -> Iterator[Finding]:
    """Every id that the training or the inference config refers to exists."""
    for file in TRAIN, INFERENCE:
        for place, id_ in sorted(dangling(bundle.config(file), bundle.metadata)):
            yield file, f"{place} refers to {id_}, which does not exist"


@bundle_rule
def overlays(bundle: Bundle) -> Iterator[Finding]:
    """Every other config merges over the training or the inference config, and all its ids exist then."""
    for file in bundle.configs:
        if file not in (TRAIN, INFERENCE):
            over_train, over_inference = (_clashes(bundle, base, file) for base in (TRAIN, INFERENCE))
            yield from ((file, f"over {TRAIN}: {clash}") for clash in over_train if over_inference)


@bundle_rule
def config_length(bundle: Bundle) -> Iterator[Finding]:
    """Configs can be read at once: training has 200 lines, any other 120, a line 125 characters, a bundle 600 lines."""
    lines = {file: bundle.text(file).splitlines() for file in bundle.configs}
    for file, found in lines.items():
        if len(found) > (limit := LINES.get(file, OTHER_LINES)):
            yield file, f"has {len(found)} lines, more than {limit}"
        for number, line in enumerate(found, start=1):
            if len(line) > WIDTH:
                yield file, f"line {number} has {len(line)} characters, more than {WIDTH}"
    if (total := sum(map(len, lines.values()))) > ALL_LINES:
        yield "configs", f"have {total} lines in all, more than {ALL_LINES}"


@bundle_rule
def named_items(bundle: Bundle) -> Iterator[Finding]:
    """No id holds the number of an item in a list, which changes with the list: what is replaced has a name."""
    for file in bundle.configs:
        config = bundle.config(file)
        ids = [(key, key.replace("#", "::")) for key in config]
        for place, text in [*ids, *(("#".join(path), text) for path, text in strings(config))]:
            if found := NUMBERED.search(text):
                yield file, f"{place} has the number of an item in a list: {found[0]}"


@bundle_rule
def no_spacingd(bundle: Bundle) -> Iterator[Finding]:
    """Inference does without MONAI's own Spacingd, which fails on the string `image_path` of MONAI Label."""
    config = bundle.config(INFERENCE)
    plain = re.compile(r"(?<![\w.])(?:monai\.transforms\.(?:\w+\.)*)?Spacing(?:d|D|Dict)\b")
    for place, text in strings(expand(config, config.get("preprocessing"), path=("preprocessing",))):
        if plain.search(text):
            yield INFERENCE, f"preprocessing#{'#'.join(place)} uses Spacingd, which fails under MONAI Label"


@bundle_rule
def writable_prediction(bundle: Bundle) -> Iterator[Finding]:
    """The last transform of pred, and SaveImaged where it names a type, ends in uint8 or float32.

    Only MONAI's own casts tell their type in the config, so one of them has to be last (SaveImaged aside).
    """
    config = bundle.config(INFERENCE)
    transforms = expand(config, config.get("postprocessing"), path=("postprocessing",))
    transforms = transforms.get("transforms") if isinstance(transforms, dict) else transforms
    if not isinstance(transforms, list):
        yield INFERENCE, "postprocessing is no plain list of transforms"
        return
    last: Config = {}
    for transform in filter(_changes_pred, transforms):
        if _name(transform) != "SaveImaged":
            last = transform
        elif not _dtype(transform.get("output_dtype", "float32")).endswith(WRITABLE):
            yield INFERENCE, f"SaveImaged writes {transform['output_dtype']}, not uint8 or float32"
    if not _casts_to_writable(last):
        yield INFERENCE, f"postprocessing ends in {_name(last) or 'nothing'}, not in a cast of pred to uint8 or float32"


def _clashes(bundle: Bundle, base: str, file: str) -> list[str]:
    """Return what goes wrong when the overlay `file` is merged over `base`, beyond what is wrong in `base` itself."""
    config = bundle.config(base)
    try:
        merged = merge(config, bundle.config(file))
    except KeyError as error:
        return [f"{error.args[0]} does not exist"]
    except (TypeError, ValueError) as error:
        return [f"{error} cannot be merged"]
    lost = sorted(dangling(merged, bundle.metadata) - dangling(config, bundle.metadata))
    return [f"{place} refers to {id_}, which does not exist" for place, id_ in lost]


def _name(transform: Config) -> str:
    return str(transform.get("_target_", "")).rpartition(".")[2]


def _keys(transform: Config) -> list[Any]:
    keys = transform.get("keys", [])
    return keys if isinstance(keys, list) else [keys]


def _changes_pred(transform: Any) -> bool:
    return isinstance(transform, dict) and "pred" in _keys(transform) and transform.get("_disabled_") is not True


def _casts_to_writable(transform: Config) -> bool:
    name = _name(transform)
    return name in CASTS and _dtype(transform.get("dtype", CASTS[name])).endswith(WRITABLE)


def _dtype(value: Any) -> str:
    """Return a type's name, with torch's and Python's spelling of float32 made the same."""
    return re.sub(r"\bfloat$", "float32", str(value))
