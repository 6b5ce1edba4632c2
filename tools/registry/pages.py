"""The texts of a release: what the bundles have in common lies in the repository's `docs` and goes into every zip."""

from __future__ import annotations

import re

from tools import REPO

__all__ = ["FOLDER", "add_common_pages", "links_from_root"]

PAGES = REPO / "docs"
FOLDER = "docs/common"
_TO_REPOSITORY = re.compile(r"(?<=\]\()\.\./\.\./\.\./docs/([\w-]+\.md)")
_TO_NEIGHBOUR = re.compile(r"\]\(([\w-]+\.md)[)#]")
_RELATIVE = re.compile(r"(?<=\]\()(?![\w+.-]+:|[#/])")


def add_common_pages(files: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the files of a bundle with the common pages that its texts link to, in `docs/common`.

    Links of `docs/*.md` to the repository's `docs` lead to `common/` then; pages that those pages link to come along.

    Args:
        files: path in the bundle -> content.

    Raises:
        ValueError: if a text links to a page that does not exist.
    """
    changed, wanted = dict(files), set()
    for name in files:
        if re.fullmatch(r"docs/[^/]+\.md", name):
            text = files[name].decode("utf-8")
            wanted |= {(name, page) for page in _TO_REPOSITORY.findall(text)}
            changed[name] = _TO_REPOSITORY.sub(r"common/\1", text).encode("utf-8")
    while wanted:
        source, page = wanted.pop()
        if f"{FOLDER}/{page}" not in changed:
            if not (PAGES / page).is_file():
                raise ValueError(f"{source}: links to {page}, which is not in {PAGES}")
            changed[f"{FOLDER}/{page}"] = (PAGES / page).read_bytes()
            text = changed[f"{FOLDER}/{page}"].decode("utf-8")
            wanted |= {(page, neighbour) for neighbour in _TO_NEIGHBOUR.findall(text)}
    return changed


def links_from_root(card: str) -> str:
    """Returns the text of `docs/README.md` with links for a copy of it in the bundle's root."""
    return _RELATIVE.sub("docs/", card)
