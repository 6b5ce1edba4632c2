"""The command `python -m tools benchmark`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch

from tools import BUNDLES
from tools.benchmark.card import card_table
from tools.benchmark.case import Baseline, BenchmarkCase, Variant, Work
from tools.benchmark.measurement import CaseResult, measure
from tools.benchmark.report import environment, recorded, table, write_json

_LOGGER = logging.getLogger(__name__)


def benchmark(
    bundle: str | None = None,
    *,
    cases: str | Sequence[str] | None = None,
    device: str = "cpu",
    json: str | None = None,
    baseline: str | None = None,
    repeats: int = 5,
    threads: int | None = None,
    card: bool = False,
) -> None:
    """Measure speed and memory of the bundles, after checking that all ways of doing a thing give the same result.

    Prints one line per case and variant. Ends with exit code 1 if a case is invalid: its outputs disagree or it failed.

    Args:
        bundle: Name of a bundle, default all.
        cases: Names of the cases to measure, separated by commas, default all but `export`, which takes minutes.
        device: Where to compute, `cpu` or `cuda`.
        json: File for the complete record: all repeats, versions, machine, commit and command line.
        baseline: Python file with a foreign implementation of some of the bundle's cases: per case a function of its
            name, `def training_step(state_dict, inputs, device)`, that prepares the work (and warms up what it has to)
            and returns a callable, which does one unit and returns its outputs. `state_dict` has the reference's keys.
        repeats: Timed units per variant.
        threads: CPU threads of PyTorch, default its own choice.
        card: Whether to print the case `export` of a bundle as a table for its model card instead.

    Raises:
        FileNotFoundError: If the baseline file does not exist.
        ValueError: If bundle, case, device or baseline are not what they should be.
        SystemExit: With code 1 if a case is invalid.
    """
    names = _names(cases, one_card=card, bundle=bundle)
    target = _checked(device)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = select(collect(bundle, target), names)
    if baseline is not None:
        chosen = attach(chosen, Path(baseline), device=target)
    machine = environment(target)
    results: dict[str, list[CaseResult]] = {}
    for name, part in chosen.items():
        _LOGGER.info("%s: measuring %s", name, ", ".join(case.name for case in part))
        results[name] = measure(part, device=target, repeats=repeats)
        if json is not None:
            write_json(Path(json), results, environment=machine)
    sys.stdout.write(card_table(recorded(results, environment=machine)) if card else table(machine, results))
    if any(result.invalid for result in chain.from_iterable(results.values())):
        raise SystemExit(1)


def _names(cases: str | Sequence[str] | None, *, one_card: bool, bundle: str | None) -> list[str]:
    names = [part for part in (cases.split(",") if isinstance(cases, str) else cases or []) if part]
    if one_card and (bundle is None or names != ["export"]):
        raise ValueError("--card needs --bundle and --cases export: it is the table of one card")
    return names


def _checked(device: str) -> torch.device:
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device '{device}': choose cpu or cuda")
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}': no CUDA device is available")
    return target


def collect(bundle: str | None, device: torch.device) -> dict[str, list[BenchmarkCase]]:
    """Load the cases that bundles register in `tools/per_bundle/<bundle>/benchmark.py`.

    Args:
        bundle: Name of a bundle, `None` for all.
        device: Where the cases compute.

    Returns:
        Cases by bundle.

    Raises:
        ValueError: If the bundle is unknown, registers no cases or registers a name twice.
    """
    folders = {folder.name: folder for folder in BUNDLES}
    if bundle is not None and bundle not in folders:
        raise ValueError(f"bundle '{bundle}' is unknown, there are: {', '.join(folders)}")
    return {name: _registered(folders[name], device) for name in ([bundle] if bundle else folders)}


def select(cases: Mapping[str, Sequence[BenchmarkCase]], names: Sequence[str]) -> dict[str, list[BenchmarkCase]]:
    """Keep the named cases.

    Args:
        cases: Cases by bundle.
        names: Names to keep; none keeps all but those on request.

    Returns:
        Cases by bundle, without the bundles that have none left.

    Raises:
        ValueError: If no bundle has a case of one of the names.
    """
    _check_names(names, {case.name for case in chain.from_iterable(cases.values())})
    kept = {bundle: _chosen(part, names) for bundle, part in cases.items()}
    return {bundle: part for bundle, part in kept.items() if part}


def _check_names(names: Sequence[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown cases: {', '.join(unknown)}; there are: {', '.join(sorted(known))}")


def _chosen(cases: Sequence[BenchmarkCase], names: Sequence[str]) -> list[BenchmarkCase]:
    return [case for case in cases if (case.name in names if names else not case.on_request)]


def attach(
    cases: Mapping[str, Sequence[BenchmarkCase]], path: Path, *, device: torch.device
) -> dict[str, list[BenchmarkCase]]:
    """Add the variant `baseline` to the cases that a baseline file defines a function for.

    Args:
        cases: Cases by bundle, of a single bundle.
        path: The baseline file.
        device: Handed to the file's functions.

    Returns:
        Cases by bundle.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file defines none of the cases, or the cases belong to several bundles.
    """
    if len(cases) != 1:
        raise ValueError(f"a baseline serves one bundle, name it with --bundle: {', '.join(cases)}")
    [(bundle, part)] = cases.items()
    functions = _functions(path, [case.name for case in part])
    if not functions:
        raise ValueError(f"{path}: defines none of the cases {', '.join(case.name for case in part)}")
    return {
        bundle: [
            _with_baseline(case, functions[case.name], device) if case.name in functions else case for case in part
        ]
    }


def _with_baseline(case: BenchmarkCase, function: Baseline, device: torch.device) -> BenchmarkCase:
    def prepare() -> Work:
        return function(case.state_dict(), case.inputs(), device)

    variant = Variant(prepare=prepare, atol=case.atol, rtol=case.rtol)
    return dataclasses.replace(case, variants={**case.variants, "baseline": variant})


def _functions(path: Path, names: Sequence[str]) -> dict[str, Baseline]:
    """Run a baseline file and pick its functions of the given names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such baseline file")
    spec = importlib.util.spec_from_file_location("benchmark_baseline", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a baseline is a Python file (.py)")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name) for name in names if callable(getattr(module, name, None))}


def _registered(folder: Path, device: torch.device) -> list[BenchmarkCase]:
    recipe = f"tools.per_bundle.{folder.name}.benchmark"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(recipe)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{recipe}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{folder.name}: registers no cases, {recipe.replace('.', '/')}.py is missing") from error
    cases: list[BenchmarkCase] = module.benchmark_cases(device)
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"{folder.name}: {recipe.replace('.', '/')}.py registers a name twice: {', '.join(names)}")
    return cases
