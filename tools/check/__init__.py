"""The rules every bundle of the collection obeys; `python -m tools check` applies them and names each breach.

A rule is one small generator in a themed module, registered by its decorator. It reads YAML, JSON and Python as text,
so the check needs neither MONAI nor torch and ends within seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import REPO
from tools.check import clones, contract, docs, layout, metadata, package, style
from tools.check.model import RULES, Problem, Repository

__all__ = [
    "RULES",
    "Problem",
    "check",
    "clones",
    "contract",
    "docs",
    "layout",
    "metadata",
    "package",
    "problems",
    "style",
]


def problems(root: Path = REPO) -> list[Problem]:
    """Apply every rule to the repository at `root` and return all breaches, in the order of the rules."""
    repository = Repository(root)
    return [problem for rule in RULES for problem in rule.apply(repository)]


def check(bundle: str | None = None) -> None:
    """Check every bundle, the tools and the tracked files against the rules of the collection.

    Prints one line per breach (rule, bundle, file, reason) and exits with status 1 if there is any.

    Args:
        bundle: name of the one bundle to report on, e.g. `vnet_atrial_mri`; all of them and the tools by default.

    Raises:
        SystemExit: with status 1 if a rule is broken, or with a message if no bundle has that name.
    """
    names = [member.name for member in Repository(REPO).bundles]
    if bundle is not None and bundle not in names:
        raise SystemExit(f"no bundle named {bundle!r} among {', '.join(names)}")
    found = [problem for problem in problems(REPO) if bundle in (None, problem.bundle)]
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    sys.stdout.write(f"{len(RULES)} rules over {bundle or ', '.join(names)}: {len(found) or 'no'} problems\n")
    if found:
        raise SystemExit(1)
