"""Which files a bundle consists of, how it and they are called, and how large they may be."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator

import yaml

from tools.check.model import Bundle, Finding, Repository, UnreadableError, bundle_rule, repository_rule
from tools.sync import FOLDER, copies

REQUIRED = (
    "LICENSE",
    "configs/metadata.json",
    "configs/logging.conf",
    "configs/train.yaml",
    "configs/inference.yaml",
    "configs/evaluate.yaml",
    "configs/multi_gpu_train.yaml",
    "docs/README.md",
    "docs/data_license.txt",
)
ALLOWED = {"LICENSE", "large_files.yml", "configs", "docs", "models", "cache", "eval", "__pycache__"}
RESERVED = ("detection", "classification", "deepedit", "deepgrow")
LARGEST = 25 * 2**20
APACHE_TERMS = "59d8f0ba87ad9a2f"  # first digits of the sha256 of the words from the title to the end of the terms


@bundle_rule
def files(bundle: Bundle) -> Iterator[Finding]:
    """A bundle has the files of the design tree."""
    for file in REQUIRED:
        if not (bundle.path / file).is_file():
            yield file, "is missing"


@bundle_rule
def readable(bundle: Bundle) -> Iterator[Finding]:
    """Configs, metadata and other JSON files can be parsed."""
    configs = [*bundle.configs, "configs/metadata.json"]
    for file in sorted({*configs, *bundle.relative("*.json")}):
        try:
            if (bundle.path / file).exists():
                bundle.config(file) if file in configs else json.loads(bundle.text(file))
        except (UnreadableError, json.JSONDecodeError) as error:
            yield file, f"cannot be parsed: {error.__cause__ or 'it holds no mapping'}"


@bundle_rule
def nothing_else(bundle: Bundle) -> Iterator[Finding]:
    """The root holds the package and the files of the design tree, nothing else; no JSON copy shadows a YAML config."""
    for path in sorted(bundle.path.iterdir()):
        if path.name not in ALLOWED.union(bundle.packages):
            yield path.name, "does not belong in the root of a bundle"
    for file in bundle.configs:
        copy = file.replace(".yaml", ".json")
        if (bundle.path / copy).exists():
            yield copy, f"MONAI Label would read it instead of {file}; JSON copies belong in the release only"


@bundle_rule
def bundle_name(bundle: Bundle) -> Iterator[Finding]:
    """The name survives MONAI's registry look-up and means nothing special to MONAI Label."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", bundle.name):
        yield "", "the name is not made of lowercase letters, digits and underscores"
    if "_v" in bundle.name[1:]:
        yield "", "the name contains _v, where MONAI's registry look-up splits name from version"
    for word in RESERVED:
        if word in bundle.name:
            yield "", f"the name contains {word!r}, on which MONAI Label changes its behaviour"


@bundle_rule
def licence(bundle: Bundle) -> Iterator[Finding]:
    """LICENSE holds the complete terms of Apache-2.0."""
    words = " ".join(bundle.text("LICENSE").replace("https://", "http://").split())
    terms = re.search(r"Apache License .*END OF TERMS AND CONDITIONS", words)
    if not terms or not hashlib.sha256(terms[0].encode()).hexdigest().startswith(APACHE_TERMS):
        yield "LICENSE", "is not the text of the Apache License 2.0"


@bundle_rule
def weight_names(bundle: Bundle) -> Iterator[Finding]:
    """No weights have a name as short as model.pt: MONAI Label loads the shortest."""
    for path in sorted(bundle.path.glob("models/*.pt")):
        if path.name != "model.pt" and len(path.name) <= len("model.pt"):
            yield f"models/{path.name}", "MONAI Label loads the shortest name, which has to be model.pt"


@bundle_rule
def large_files(bundle: Bundle) -> Iterator[Finding]:
    """Every entry of large_files.yml has a path, a URL and a typed sha256."""
    file = "large_files.yml"
    if not (bundle.path / file).exists():
        return
    try:
        entries = list(yaml.safe_load(bundle.text(file))["large_files"])
    except (yaml.YAMLError, TypeError, KeyError):
        yield file, "holds no list named large_files"
        return
    for number, entry in enumerate(entries):
        if absent := {"path", "url", "hash_val", "hash_type"}.difference(entry):
            yield file, f"entry {number} lacks {', '.join(sorted(absent))}"
        elif entry["hash_type"] != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", str(entry["hash_val"])):
            yield file, f"entry {number} ({entry['path']}) has no sha256"


@bundle_rule
def identical_files(bundle: Bundle) -> Iterator[Finding]:
    """The logging config is the same in every bundle; what is shared is as `make sync` writes it."""
    file, first = "configs/logging.conf", bundle.repository.bundles[0]
    if bundle.text(file) != first.text(file):
        yield file, f"differs from its copy in {first.name}"
    for package in [bundle.path / name for name in bundle.packages if len(bundle.packages) == 1]:
        wanted, folder = copies(bundle.repository.path, package), f"{package.name}/{FOLDER}"
        for name in sorted({*wanted, *(path.name for path in package.glob(f"{FOLDER}/*.py"))}):
            path = package / FOLDER / name
            if name not in wanted or not path.is_file() or path.read_text(encoding="utf-8") != wanted[name]:
                yield f"{folder}/{name}", f"is not what `make sync` makes of tools/{FOLDER}"


@repository_rule
def file_size(repository: Repository) -> Iterator[Finding]:
    """Git tracks no file above 25 MB; where there is no git work tree, nothing is tracked."""
    listing = subprocess.run(
        ["git", "-C", repository.path, "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    for file in filter(None, listing.stdout.split("\0")):
        path = repository.path / file
        if path.is_file() and path.stat().st_size > LARGEST:
            yield file, f"has {path.stat().st_size / 2**20:.0f} MB, more than 25: publish it through large_files.yml"
