"""The model card: its sections, its figures, and what it must not give away."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.check.config import leaves
from tools.check.model import Bundle, Finding, bundle_rule

CARD = "docs/README.md"
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
