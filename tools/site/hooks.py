"""What MkDocs calls while it builds the site, named in `mkdocs.yml`."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools import BUNDLES
from tools.site.pages import assets, howtos, package, pages, with_cards


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the menu: how-tos that it does not name, cards, and the references of every bundle."""
    menu: list[dict[str, Any]] = config.nav or []
    sections = {name: entry for part in menu for name, entry in part.items()}
    used = {page for entry in sections.values() for page in (entry if isinstance(entry, list) else [entry])}
    sections["How-to"] += howtos(used)
    for folder in BUNDLES:
        at, name = f"bundles/{folder.name}", folder.name
        sections["Bundles"].append({name: [{"Card": f"{at}/README.md"}, {"Details": f"{at}/details.md"}]})
        sections["Options"].append({name: f"reference/{name}.md"})
        sections["Classes"].append({name: f"reference/{package(folder)}.md"})
    sections["Classes"].append({"shared": "reference/shared.md"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files that do not lie in `docs`."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name, path in assets().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links the names of bundles, in tables, to their cards."""
    name = str(page.file.src_uri)
    return markdown if name.startswith(("bundles/", "reference/")) or name == "index.md" else with_cards(name, markdown)
