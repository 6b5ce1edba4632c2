"""What the site has beside the pages in `docs`: README, cards, options and classes, with links that hold there."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from tools import BUNDLES, REPO
from tools.site.options import options, table

__all__ = ["assets", "howtos", "linked", "pages"]

LINK = re.compile(r"(!?)\[([^\]\[]*)\]\((?![\w+.-]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
ORDER = ("train", "inference", "evaluate")
PRIVATE = {"__init__"}


def site_of(path: str) -> str | None:
    """Returns where the site has a file of the repository; None if it has it not."""
    names = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
    if match := re.fullmatch(r"bundles/(\w+)/docs/([\w.-]+)", path):
        return f"bundles/{match[1]}/{match[2]}"
    return names.get(path) or (path.removeprefix("docs/") if re.fullmatch(r"docs/[\w.-]+", path) else None)


def linked(path: str, text: str) -> str:
    """Returns a text of the repository with links as the site has them; what it has not is named without a link.

    Args:
        path: of the text in the repository.
        text: Markdown.
    """
    here = site_of(path) or path

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        place = site_of(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        if place is None:
            return str(words)
        return f"{picture}[{words}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(link, BADGE.sub("", text))


def with_cards(page: str, text: str) -> str:
    """Returns a text of `docs` in which the name of a bundle, in a table, leads to its card."""
    up = "../" * page.count("/")
    parts = FENCE.split(text)
    names = "|".join(folder.name for folder in BUNDLES)
    for i in range(0, len(parts), 2):
        rows = re.compile(rf"^(\|.*?)`({names})`", re.MULTILINE)
        parts[i] = rows.sub(lambda match: f"{match[1]}[`{match[2]}`]({up}bundles/{match[2]}/README.md)", parts[i])
    return "".join(parts)


def pages() -> dict[str, str]:
    """Returns path on the site -> Markdown, of all pages that do not lie in `docs`."""
    found = {}
    texts = ["README.md", "CONTRIBUTING.md"]
    texts += sorted(path.relative_to(REPO).as_posix() for path in REPO.glob("bundles/*/docs/*.md"))
    for path in texts:
        found[str(site_of(path))] = linked(path, (REPO / path).read_text(encoding="utf-8"))
    for folder in BUNDLES:
        found[f"reference/{folder.name}.md"] = _options_page(folder)
        found[f"reference/{package(folder)}.md"] = _classes_page(folder)
    modules = sorted(path.stem for path in (REPO / "tools/shared").glob("*.py") if path.stem not in PRIVATE)
    found["reference/shared.md"] = "\n\n".join(
        [
            "# Modules that bundles share",
            "A bundle has copies of those that it uses, in `<package>.shared`.",
            *(f"## `{name}`\n\n::: tools.shared.{name}" for name in modules),
        ]
    )
    return found


def assets() -> dict[str, Path]:
    """Returns path on the site -> file, of figures and results beside the cards."""
    files = [*REPO.glob("bundles/*/docs/*.png"), *REPO.glob("bundles/*/docs/results_*.json")]
    return {str(site_of(path.relative_to(REPO).as_posix())): path for path in files}


def howtos(used: set[str]) -> list[str]:
    """Returns the pages of `docs` that no menu names yet, by name."""
    return sorted(path.name for path in (REPO / "docs").glob("*.md") if path.name not in used)


def package(folder: Path) -> str:
    """Returns the name of a bundle's package."""
    return next(path.parent.name for path in folder.glob("*/__init__.py"))


def _options_page(folder: Path) -> str:
    metadata = json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))
    stems = [path.stem for path in sorted(folder.glob("configs/*.yaml"))]
    ordered = [name for name in ORDER if name in stems] + [name for name in stems if name not in ORDER]
    blocks = [
        f"# Options of {folder.name}",
        f"{metadata['name']}, version {metadata['version']}. Every key is an option of the command line: "
        "`--name value`; a part of a component is `--component#argument value`. Overlays change defaults of the "
        "configs before them. Defaults that begin with `$` are Python, `@name` is the value of another key, `%name` "
        "its text.",
    ]
    for stem in ordered:
        path = folder / f"configs/{stem}.yaml"
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        blocks += [f"## `{stem}.yaml`", first.lstrip("# ") if first.startswith("#") else "", table(options(path))]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _classes_page(folder: Path) -> str:
    name = package(folder)
    modules = sorted(path.stem for path in (folder / name).glob("*.py") if path.stem not in PRIVATE)
    parts = [f"## `{module}`\n\n::: {name}.{module}" for module in modules]
    return "\n\n".join([f"# Classes and functions of {folder.name}", *parts])
