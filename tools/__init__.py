"""Commands that check, pack, convert, measure and demonstrate the bundles: `python -m tools <verb>`."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BUNDLES = sorted(folder for folder in (REPO / "bundles").iterdir() if (folder / "configs/metadata.json").is_file())
