"""Checkpoints of the reference implementations to state dicts of our networks, and back.

Which name means which is data: `tools/per_bundle/<bundle>/keys.yaml` holds one entry per network (role) of a bundle.
Rules are patterns; the keys come from the network that the bundle's config builds, so that they fit every variant.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from tools import REPO
from tools.registry.checkpoints import read_content, state_dict, unusable, write_state

__all__ = ["KeyMap", "Role", "convert", "load_key_map", "load_role"]

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A parameter that the reference never uses, beside each of ours that the rule names; `times` as many channels."""

    key: str
    value: float
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """Another order of a parameter's channels, as of label classes: ours number `i` is the reference's `order[i]`."""

    axis: int
    order: list[int]

    def __call__(self, tensor: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
        order = np.argsort(self.order) if inverse else self.order
        return tensor.index_select(self.axis, torch.as_tensor(order))


@dataclass(frozen=True, kw_only=True)
class Role:
    """One entry of `keys.yaml`: a network of a bundle, and how the reference names its parameters.

    Args:
        config: config file or files, relative to the bundle, that define the network.
        id: the definition's id in them.
        file: state dict of the converted network, relative to the bundle.
        rename: template of our names -> template of the reference's. A placeholder such as `{k}` stands for one name
            component, or for the names of its table in `names`. Without any rule the names are equal.
        names: placeholder -> our name -> the reference's name.
        dropped: template of our names -> dead parameter beside it in the reference.
        permuted: template of our names -> order of channels.
        later: template of our names -> what makes no difference, for parameters that early checkpoints lack altogether.
        parts: prefixes of the names; the reference has a state dict for each, in files `<part>.pth` of a folder or side
            by side in one file.
        checkpoint_keys: entries of a checkpoint under which the state dict may lie.
        reversed_axes: whether the reference orders spatial axes the other way round; kernels are transposed then.
        override: values set in the config before the network is built, for a variant of it.
    """

    config: str | list[str]
    id: str
    file: str
    rename: dict[str, str] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    permuted: dict[str, Permuted] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    checkpoint_keys: list[str] = field(default_factory=list)
    reversed_axes: bool = False
    override: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """The parameter names of one network, ours and the reference's, one to one.

    Args:
        network: bundle and role.
        names: our key -> the reference's key.
        shapes: our key -> shape.
        dropped: the reference's dead parameters, filled with their initial values.
        permuted: our key -> order of channels.
        later: our parameters that early checkpoints lack, filled with what makes no difference.
        whole: parameters that are whole numbers, by both names.
        reversed_axes: whether the spatial axes of kernels are reversed between the two.
    """

    network: str
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dropped: dict[str, torch.Tensor]
    permuted: dict[str, Permuted]
    later: dict[str, torch.Tensor]
    whole: set[str]
    reversed_axes: bool

    def to_ours(self, state: State) -> dict[str, torch.Tensor]:
        """Returns our state dict for one in the reference's names.

        Raises:
            ValueError: if keys are missing, unknown, of another shape, or no finite numbers; all are listed.
        """
        early = {self.names[ours]: value for ours, value in self.later.items()}
        is_early = bool(early) and not early.keys() & state.keys()
        state = {**state, **early} if is_early else state
        expected = {key: tuple(value.shape) for key, value in self.dropped.items()}
        expected |= {theirs: self._swap_shape(self.shapes[ours]) for ours, theirs in self.names.items()}
        self._verify(state, expected)
        if is_early:
            logger.info("%s: an early checkpoint, filled up with %s", self.network, ", ".join(early))
        if self.dropped:
            logger.info("%s: dropped, as the reference never uses them: %s", self.network, ", ".join(self.dropped))
        ours = {name: self._swap(state[theirs]) for name, theirs in self.names.items()}
        return ours | {name: permute(ours[name]) for name, permute in self.permuted.items()}

    def to_reference(self, state: State) -> dict[str, torch.Tensor]:
        """Returns the reference's state dict, dead parameters included, for one in our names.

        Raises:
            ValueError: as `to_ours`.
        """
        self._verify(state, self.shapes)
        ordered = {**state} | {name: permute(state[name], inverse=True) for name, permute in self.permuted.items()}
        renamed = {theirs: self._swap(ordered[ours]) for ours, theirs in self.names.items()}
        return renamed | {key: value.clone() for key, value in self.dropped.items()}

    def _swap(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        if self.reversed_axes and tensor.ndim > 2:
            tensor = tensor.permute(0, 1, *range(tensor.ndim - 1, 1, -1))
        return tensor.clone(memory_format=torch.contiguous_format)

    def _swap_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:2] + shape[:1:-1] if self.reversed_axes else shape

    def _verify(self, state: State, expected: Shapes) -> None:
        problems = _listing("missing keys", expected.keys() - state.keys())
        problems += _listing("unknown keys", state.keys() - expected.keys())
        other = (key for key in expected.keys() & state.keys() if tuple(state[key].shape) != expected[key])
        problems += _listing("other shapes", (f"{key} {tuple(state[key].shape)} not {expected[key]}" for key in other))
        if not problems:  # of the right sizes, so that they can be looked at
            problems = _listing("no finite numbers of the right kind", unusable(state, whole=self.whole))
        if problems:
            raise ValueError("\n  ".join([f"the state dict does not fit {self.network}", *problems]))


def convert(
    bundle: str, checkpoint: str, *, output: str | None = None, network: str | None = None, reverse: bool = False
) -> str:
    """Converts a checkpoint of the reference implementation into a plain state dict of ours, without running its code.

    Args:
        bundle: name of the bundle, for example `vnet_atrial_mri`.
        checkpoint: file written by the reference implementation, or the folder of its files if it writes several.
        output: file to write; by default the role's `file` in the bundle.
        network: which of the bundle's networks it is, a role of its `keys.yaml`; by default the first.
        reverse: convert our state dict into one in the reference's names instead; `output` must be given then, a folder
            if the reference has several files.

    Returns:
        The file or folder written.

    Raises:
        ValueError: if the file is no such checkpoint, or its keys, shapes or numbers are not such as the network's.
    """
    if reverse and output is None:
        raise ValueError(f"{bundle}, {checkpoint}: --reverse needs --output, the reference has no file in the bundle")
    role = load_role(bundle, network)
    target = Path(output) if output else REPO / "bundles" / bundle / role.file
    key_map = load_key_map(bundle, network)
    keys, parts = ((), ()) if reverse else (role.checkpoint_keys, role.parts)
    content = read_content(Path(checkpoint), parts)
    try:
        state = state_dict(content, keys=keys, parts=parts)
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
        state = key_map.to_reference(state) if reverse else key_map.to_ours(state)
    except ValueError as error:
        raise ValueError(f"{bundle}, {checkpoint}: {error}") from error
    write_state(state, target, parts=role.parts if reverse else ())
    logger.info("%s: %d tensors of %s written to %s", bundle, len(state), checkpoint, target)
    return str(target)


def load_role(bundle: str, role: str | None = None) -> Role:
    """Returns the entry `role`, by default the first, of the bundle's `keys.yaml`.

    Raises:
        ValueError: if the bundle has no key map or no such role.
    """
    path = REPO / "tools" / "per_bundle" / bundle / "keys.yaml"
    if not path.is_file():
        raise ValueError(f"{bundle}: no key map {path.relative_to(REPO)}")
    roles = yaml.safe_load(path.read_text(encoding="utf-8"))
    role = next(iter(roles)) if role is None else role
    if role not in roles:
        raise ValueError(f"{bundle}: no network {role!r}, {path.relative_to(REPO)} has {', '.join(roles)}")
    entry = roles[role]
    dropped = {template: Dropped(**rule) for template, rule in entry.get("dropped", {}).items()}
    permuted = {template: Permuted(**rule) for template, rule in entry.get("permuted", {}).items()}
    return Role(**entry | {"dropped": dropped, "permuted": permuted})


def load_key_map(bundle: str, role: str | None = None, *, state: State | None = None) -> KeyMap:
    """Returns the key map of one network of a bundle.

    Args:
        bundle: name of the bundle.
        role: name of the network in `keys.yaml`, by default the first.
        state: our state dict of the variant to map, when it is not the one that the config defines.

    Raises:
        ValueError: if a parameter of the network has no name in the reference, or two have the same.
    """
    entry = load_role(bundle, role)
    state = _built(bundle, entry) if state is None else state
    names = _names(state, entry, f"{bundle}, {role or 'its network'}")
    return KeyMap(
        network=f"{bundle}, network {role}" if role else bundle,
        names=names,
        shapes={ours: tuple(tensor.shape) for ours, tensor in state.items()},
        dropped=dict(_fillings(state, entry)),
        permuted=dict(_matching(entry.permuted, state, entry)),
        later={ours: torch.full_like(state[ours], value) for ours, value in _matching(entry.later, state, entry)},
        whole={n for ours, tensor in state.items() if not tensor.is_floating_point() for n in (ours, names[ours])},
        reversed_axes=entry.reversed_axes,
    )


def _names(state: State, role: Role, network: str) -> dict[str, str]:
    found = {ours: list(_translations(ours, role.rename or {ours: ours}, role.names)) for ours in state}
    counts = Counter(chain.from_iterable(found.values()))
    problems = _listing("no name in the reference", (ours for ours, theirs in found.items() if not theirs))
    problems += _listing("more than one name", (ours for ours, theirs in found.items() if len(theirs) > 1))
    problems += _listing("name given twice", counts - Counter(counts.keys()))
    if problems:
        raise ValueError("\n  ".join([f"{network}: the key map does not fit", *problems]))
    return {ours: theirs for ours, (theirs,) in found.items()}


def _built(bundle: str, role: Role) -> dict[str, torch.Tensor]:
    """Builds the network that the bundle's config defines and returns its state dict."""
    folder = REPO / "bundles" / bundle
    files = [role.config] if isinstance(role.config, str) else role.config
    parser = ConfigParser()
    parser.read_config([folder / file for file in files])
    parser.update(role.override)
    sys.path.insert(0, str(folder))
    try:
        return parser.get_parsed_content(role.id).state_dict()
    finally:
        sys.path.remove(str(folder))


def _translations(key: str, rules: Mapping[str, str], names: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """Yields what each rule whose template fits the whole key makes of it."""
    for template, target in rules.items():
        parts = re.split(r"\{(\w+)\}", template)
        parts[::2] = map(re.escape, parts[::2])
        parts[1::2] = [f"(?P<{p}>{'|'.join(map(re.escape, names.get(p, ()))) or '[^.]+'})" for p in parts[1::2]]
        if match := re.fullmatch("".join(parts), key):
            named = {name: names.get(name, {}).get(part, part) for name, part in match.groupdict().items()}
            yield target.format(**named)


def _matching(rules: Mapping[str, Any], state: State, role: Role) -> Iterable[tuple[str, Any]]:
    """Yields our names that fit a rule's template, with the rule."""
    for template, rule in rules.items():
        yield from ((name, rule) for name in state if any(_translations(name, {template: template}, role.names)))


def _fillings(state: State, role: Role) -> Iterable[tuple[str, torch.Tensor]]:
    """Yields name and initial value of each dead parameter of the reference."""
    for (template, rule), (ours, tensor) in product(role.dropped.items(), state.items()):
        shape = [size * rule.times if axis < 2 else size for axis, size in enumerate(tensor.shape)]
        for theirs in _translations(ours, {template: rule.key}, role.names):
            yield theirs, torch.full(shape, rule.value)


def _listing(title: str, items: Iterable[str]) -> list[str]:
    found = sorted(items)
    return [f"{title} ({len(found)}): {', '.join(found)}"] if found else []
