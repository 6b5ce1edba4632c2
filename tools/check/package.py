"""One uniquely named package per bundle, which needs nothing but what the metadata lists."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from tools.check.config import strings
from tools.check.model import Bundle, Finding, bundle_rule

CORE = {"monai", "numpy", "torch"}
DISTRIBUTIONS = {"ignite": "pytorch-ignite", "nrrd": "pynrrd", "skimage": "scikit-image", "yaml": "pyyaml"}
IMPLIED = {"ITKReader": "itk", "TensorBoardImageHandler": "tensorboard", "TensorBoardStatsHandler": "tensorboard"}
# Installed by hand, in the build that fits the GPU's driver and torch.
ON_GPUS = {"configs/inference_trt.yaml": ("torch_tensorrt",)}


@bundle_rule
def one_package(bundle: Bundle) -> Iterator[Finding]:
    """A bundle has one package, called like the bundle or like the first words of its name."""
    if len(bundle.packages) != 1:
        yield "", f"has {len(bundle.packages)} Python packages instead of one: {', '.join(bundle.packages) or 'none'}"
    for package in bundle.packages:
        if not f"{bundle.name}_".startswith(f"{package}_"):
            yield f"{package}/__init__.py", f"the package is not named by the first words of {bundle.name}"


@bundle_rule
def unique_package(bundle: Bundle) -> Iterator[Finding]:
    """No two bundles have packages of one name: in one process the second would get the first one's classes."""
    for other in _others(bundle):
        for package in set(bundle.packages).intersection(other.packages):
            yield f"{package}/__init__.py", f"{other.name} has a package of the same name"


@bundle_rule
def self_contained(bundle: Bundle) -> Iterator[Finding]:
    """A bundle imports neither the tools, nor the tests, nor another bundle's package."""
    foreign = {"tools", "tests"}.union(*(other.packages for other in _others(bundle))).difference(bundle.packages)
    for file, module in _modules(bundle):
        if module in foreign:
            yield file, f"imports {module}, which does not come with the bundle"


@bundle_rule
def listed_requirements(bundle: Bundle) -> Iterator[Finding]:
    """Whatever a bundle imports stands in required_packages_version, but for TensorRT in its overlay."""
    listed = {name.lower() for name in bundle.mapping("required_packages_version")}
    ours = CORE.union(bundle.packages, sys.stdlib_module_names, ["tools", "tests"])
    ours.update(*(other.packages for other in _others(bundle)))
    for file, module in _modules(bundle):
        distribution = DISTRIBUTIONS.get(module, module)
        if module not in ours.union(ON_GPUS.get(file, ())) and distribution not in listed:
            yield file, f"needs {distribution}, which required_packages_version does not list"


def _others(bundle: Bundle) -> list[Bundle]:
    return [other for other in bundle.repository.bundles if other.name != bundle.name]


def _modules(bundle: Bundle) -> list[tuple[str, str]]:
    """Return (file, top-level module) of every absolute import in Python files and configs, each once."""
    found = {(file, name) for file, source in bundle.python.items() for name in _imported(source.tree)}
    for file in bundle.configs:
        found.update((file, name) for path, leaf in strings(bundle.config(file)) for name in _named(path[-1], leaf))
    return sorted(found)


def _named(key: str, text: str) -> list[str]:
    """Return the modules that one string of a config needs: a target, an import statement, a MONAI class."""
    if implied := IMPLIED.get(text.rpartition(".")[2]):
        return [implied]
    pattern = r"^(\w+)\." if key == "_target_" else r"^\$\s*(?:import|from)\s+(\w+)"
    return re.findall(pattern, text)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]
