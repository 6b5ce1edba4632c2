"""The model card: its length, sections and figures; what texts must not give away, and that what they name exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.__main__ import VERBS
from tools.check.config import leaves
from tools.check.model import Bundle, Finding, Folder, Repository, bundle_rule, repository_rule

CARD = "docs/README.md"
CARD_LINES = 150
LINK = re.compile(r"\]\((?!(?:\.\./)+actions/)([^)#:\s]+)[)#]")  # but those to GitHub's own pages
PATH = re.compile(r"(?<![\w/.<>$}{-])((?:bundles|configs|docs|examples|tests|tools)/[\w./*-]*[\w*])(?![\w./*-]*[$<{])")
MODULE = re.compile(r"-m (tools\.[\w.]*\w)")
VERB = re.compile(r"-m tools ([a-z]\w*)")
PAGES = ("*.md", "docs/*.md", ".github/*.md", "examples/*")
SECTIONS = (
    "Data",
    "Training",
    "Inference",
    "Evaluation",
    "Results",
    "MONAI Label",
    "Limitations",
    "Licence",
    "References",
)


@bundle_rule
def card_sections(bundle: Bundle) -> Iterator[Finding]:
    """The model card has a title and, in this order, the sections of every card, none of them empty."""
    card = re.sub(r"^```.*?^```", "code", bundle.text(CARD), flags=re.DOTALL | re.MULTILINE)
    if not card.startswith("# "):
        yield CARD, "does not start with a title"
    parts = re.split(r"^## (.+)$", card, flags=re.MULTILINE)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    for section in SECTIONS:
        if not bodies.get(section, "").strip():
            yield CARD, f"the section `## {section}` is {'empty' if section in bodies else 'missing'}"
    present = [section for section in bodies if section in SECTIONS]
    if present != [section for section in SECTIONS if section in present]:
        yield CARD, f"the sections are in the order {', '.join(present)}"


@bundle_rule
def card_length(bundle: Bundle) -> Iterator[Finding]:
    """The model card has at most 150 lines; what does not fit stands in other pages of `docs`."""
    if (lines := len(bundle.text(CARD).splitlines())) > CARD_LINES:
        yield CARD, f"has {lines} lines, more than {CARD_LINES}"


@bundle_rule
def card_figures(bundle: Bundle) -> Iterator[Finding]:
    """Metrics stand in the metadata, and each of those figures in the model card too."""
    metrics = [
        (place, leaf) for place, leaf in leaves(bundle.mapping("eval_metrics")) if isinstance(leaf, (int, float))
    ]
    if not metrics:
        yield "configs/metadata.json", "eval_metrics holds no figure"
    written = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", bundle.text(CARD))}
    for place, figure in metrics:
        if figure not in written:
            yield CARD, f"lacks the figure {figure} of eval_metrics.{'.'.join(place)}"


@bundle_rule
def no_personal_paths(bundle: Bundle) -> Iterator[Finding]:
    """No config, text or code names a folder of somebody's machine."""
    for file in (*bundle.configs, *bundle.relative("*.md"), *bundle.relative("*.json"), *bundle.relative("*.py")):
        if path := re.search(r"(?<![\w.:/])/(?:home|Users|root)/[^\s\"'`)]*", bundle.text(file)):
            yield file, f"names the path {path[0]}"


@bundle_rule
def card_links(bundle: Bundle) -> Iterator[Finding]:
    """What the texts of a bundle name exists: links, configs, tools, and paths in the bundle or the repository."""
    for file in bundle.relative("docs/*.md"):
        yield from _absent(bundle, file, bases=(bundle.path, bundle.repository.path))
        for config in re.findall(r"`([\w*]+\.yaml)`", bundle.text(file)):
            if not list(bundle.path.glob(f"configs/{config}")):
                yield file, f"names the config {config}, which does not exist"


@repository_rule
def page_links(repository: Repository) -> Iterator[Finding]:
    """What the repository's pages name exists; those in `docs` link to their neighbours only, as a release has them."""
    bases = (repository.path, *(bundle.path for bundle in repository.bundles))
    for file in sorted(
        path.relative_to(repository.path).as_posix() for name in PAGES for path in repository.path.glob(name)
    ):
        yield from _absent(repository, file, bases=bases)
        if far := file.startswith("docs/") and re.search(r"\]\(([^):#]*/[^):]*)\)", repository.text(file)):
            yield file, f"links to {far[1]}, which no release has"


def _absent(folder: Folder, file: str, *, bases: tuple[Path, ...]) -> Iterator[Finding]:
    """Yield the links, paths, modules and verbs of the tools in a text that do not exist."""
    text, root, beside = folder.text(file), folder.repository.path, (folder.path / file).parent
    kinds: list[tuple[str, re.Pattern[str], Callable[[str], bool]]] = [
        ("links to {}", LINK, lambda link: (beside / link).exists()),
        ("names {}", PATH, lambda path: any(list(base.glob(path)) for base in bases)),
        ("names the module {}", MODULE, lambda module: bool(list(root.glob(f"{module.replace('.', '/')}*")))),
        ("names `tools {}`", VERB, VERBS.__contains__),
    ]
    for kind, pattern, exists in kinds:
        for name in pattern.findall(text):
            if not exists(name):
                yield file, f"{kind.format(name)}, which does not exist"
