"""The commands in the cards and the common pages, as bash would give them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools import REPO

# No program is found, so that the shell only prints the words of each command, after loops and variables.
STUBS = r"""
cd() { :; }
command_not_found_handle() { printf '%s\037' "$@"; printf '\036'; }
PATH=/none
"""


def pages(bundle: str, *common: str) -> list[Path]:
    """The bundle's card and its details, and pages of the repository."""
    docs = REPO / "bundles" / bundle / "docs"
    return [docs / "README.md", docs / "details.md", *(REPO / "docs" / f"{name}.md" for name in common)]


def blocks(page: Path) -> list[str]:
    """What stands in the page's blocks of bash."""
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(*scripts: str) -> list[list[str]]:
    """The words of every command of the scripts, which share their variables; an unset variable is an error."""
    script = "\n".join([STUBS, *scripts])
    done = subprocess.run(["/bin/bash", "-euc", script], env={}, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("\037")[:-1] for line in done.stdout.split("\036")[:-1]]
