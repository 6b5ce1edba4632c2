"""configs/metadata.json: schema, versions, pins, names that MONAI Label reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.check.model import Bundle, Finding, Repository, bundle_rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "configs/metadata.json"
SCHEMA = "meta_schema_20240725.json"
OWN_PINS = {"monai": "monai_version", "numpy": "numpy_version", "torch": "pytorch_version"}


@bundle_rule
def metadata_schema(bundle: Bundle) -> Iterator[Finding]:
    """The metadata obey MONAI's schema of 2024-07-25, of which the tests keep the rules."""
    schema = json.loads(bundle.repository.text("tools/check/metadata_schema.json"))
    for error in jsonschema.Draft201909Validator(schema).iter_errors(bundle.metadata):
        yield FILE, f"{'.'.join(map(str, error.absolute_path)) or 'metadata'}: {error.message}"
    if not str(bundle.metadata.get("schema", SCHEMA)).endswith(f"/{SCHEMA}"):
        yield FILE, f"schema is not the URL of {SCHEMA}"


@bundle_rule
def version(bundle: Bundle) -> Iterator[Finding]:
    """The version has three one-digit parts (MONAI sorts versions as strings) and a changelog entry."""
    number = str(bundle.metadata.get("version", ""))
    if not re.fullmatch(r"\d\.\d\.\d", number):
        yield FILE, f"version {number!r} is not made of three single digits"
    if number not in bundle.mapping("changelog"):
        yield FILE, f"version {number!r} has no entry in the changelog"


@bundle_rule
def exact_pins(bundle: Bundle) -> Iterator[Finding]:
    """Every required version is one exact number that the repository's own dependency group admits."""
    admitted = _admitted(bundle.repository)
    for name, pin in _pins(bundle).items():
        if not re.fullmatch(r"\d+(\.\w+)+", str(pin)):
            yield FILE, f"{name} is required as {pin!r}, not as one exact version"
        elif name not in admitted:
            yield FILE, f"{name} is not in the dependency group of pyproject.toml"
        elif not any(requirement.specifier.contains(str(pin)) for requirement in admitted[name]):
            yield FILE, f"{name} {pin} is outside of {', '.join(map(str, admitted[name]))} in pyproject.toml"


@bundle_rule
def image_and_pred(bundle: Bundle) -> Iterator[Finding]:
    """The first input is called image and the first output pred: MONAI Label reads no others."""
    for kind, key in ("inputs", "image"), ("outputs", "pred"):
        first = next(iter(_format(bundle, kind)), None)
        if first != key:
            yield FILE, f"the first of network_data_format.{kind} is {first!r}, not {key!r}"


@bundle_rule
def channel_def(bundle: Bundle) -> Iterator[Finding]:
    """Channels are named, and their keys are whole numbers: MONAI Label takes those of pred as label values."""
    for kind in "inputs", "outputs":
        for name, tensor in _format(bundle, kind).items():
            keys = list(tensor.get("channel_def", {}))
            if not keys or not all(key.isdecimal() for key in keys):
                yield FILE, f"channel_def of {kind}.{name} has the keys {keys}, not whole numbers"


def _format(bundle: Bundle, kind: str) -> dict[str, dict[str, Any]]:
    """Return the tensors among the network's inputs or outputs."""
    content = bundle.mapping("network_data_format").get(kind)
    return {k: v for k, v in content.items() if isinstance(v, dict)} if isinstance(content, dict) else {}


def _pins(bundle: Bundle) -> dict[str, Any]:
    """Return version by distribution name."""
    pins = {str(canonicalize_name(k)): v for k, v in bundle.mapping("required_packages_version").items()}
    return {**{name: bundle.metadata[key] for name, key in OWN_PINS.items() if key in bundle.metadata}, **pins}


def _admitted(repository: Repository) -> dict[str, list[Requirement]]:
    """Return the requirements of the group `run` by name; torch, installed first, is pinned anywhere in the file."""
    text = repository.text("pyproject.toml")
    lines = [line for line in tomllib.loads(text)["dependency-groups"]["run"] if isinstance(line, str)]
    admitted: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, [*lines, *re.findall(r"\btorch==[\w.]+", text)]):
        admitted.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return admitted
