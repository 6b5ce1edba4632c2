"""A run of the ensemble that may be interrupted: complete files only, nothing done twice, one ensemble to a folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .data import soft_label_file
from .ensemble import Ensemble
from .shared.files import newer, write_text
from .shared.validation import Case, InputError, case_name

__all__ = ["Annotation", "file_digest"]

logger = logging.getLogger(__name__)


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file, of weights for example."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Annotation:
    """Outputs of the ensemble in its folder.

    `<case>/<case>_{soft,spread,label}.nii.gz`, in this order, so that a case with a label map is done, unless its
    scan has been written to since; and `ensemble.json`, which tells whose they are.

    Args:
        cases: all scans, as `data.find_scans` lists them.
        output_dir: the folder.
        ensemble: the ensemble.
        settings: what else must be the same in all of a folder's files.
    """

    def __init__(self, cases: Sequence[Case], *, output_dir: str, ensemble: Ensemble, settings: Any = None) -> None:
        self.cases = list(cases)
        self.folder = Path(output_dir).absolute()
        self.ensemble = ensemble
        self.settings = settings

    def file(self, case: str, kind: str) -> Path:
        """Returns where the `soft` labels, their `spread` or the `label` map of a case lies."""
        return soft_label_file(self.folder, case, kind=kind)

    @property
    def remaining(self) -> list[Case]:
        """The cases that are not done yet."""
        labels = [(case, self.file(case_name(case), "label")) for case in self.cases]
        return [case for case, label in labels if not label.is_file() or newer(case["image"], label)]

    def run(self, evaluator: Any) -> None:
        """Marks the folder as this ensemble's, and lets the `evaluator` of the remaining cases run.

        Raises:
            InputError: when the folder is of another ensemble or other settings.
        """
        mark = self.folder / "ensemble.json"
        text = json.dumps({"members": self.ensemble.identity(), "settings": self.settings}, indent=1) + "\n"
        if mark.is_file() and mark.read_text(encoding="utf-8") != text:
            rule = "the folder is of another ensemble or other settings: remove it, or choose another"
            raise InputError([("", str(mark), rule)])
        write_text(mark, text)
        remaining = len(self.remaining)
        logger.info("%d of %d cases have soft labels already", len(self.cases) - remaining, len(self.cases))
        if remaining:
            evaluator.run()
