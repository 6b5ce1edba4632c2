"""An annotation run that may be interrupted: complete files only, nothing done twice, a datalist at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from .datalist import write_datalist
from .ensemble import Ensemble
from .shared.data import sequence_files
from .shared.files import newer, write_text
from .shared.validation import Case, InputError, case_name

__all__ = ["Annotation"]

logger = logging.getLogger(__name__)

LABEL_ORDER = ["NCR", "ED", "ET", "ET"]


class Annotation:
    """Outputs of an annotation run in its folder, and how it goes on after an interruption.

    `<case>/<case>_{soft,disagreement,label}.nii.gz` in this order, so a case with a label map is done; then
    `datalist.json` for the student's training. `ensemble.json` tells which ensemble the folder is of. A scan that has
    been written to since is annotated again.

    Args:
        cases: all scans to annotate, as `datalist.unlabelled_cases` lists them.
        output_dir: the folder.
        ensemble: the ensemble.
        settings: what else must be the same in all of a folder's annotations.
        soft: whether region probabilities are saved too.
        sequences: those of the scans.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        output_dir: str,
        ensemble: Ensemble,
        settings: Any = None,
        soft: bool = False,
        sequences: Sequence[str] = (),
    ) -> None:
        self.cases = list(cases)
        self.folder = Path(output_dir)
        self.ensemble = ensemble
        self.settings = settings
        self.soft = soft
        self.sequences = list(sequences)

    def file(self, case: Case, kind: str) -> Path:
        """Returns where the `label`, `soft` or `disagreement` map of a case lies."""
        name = case_name(case)
        return self.folder / name / f"{name}_{kind}.nii.gz"

    @property
    def remaining(self) -> list[Case]:
        """The cases that are not annotated yet."""
        return [case for case in self.cases if not self._is_done(case)]

    def _is_done(self, case: Case) -> bool:
        label, image = self.file(case, "label"), Path(case["image"])
        scan = [image, *(sequence_files(image, self.sequences) or {}).values()]
        return label.is_file() and not any(newer(file, label) for file in scan)

    def start(self) -> None:
        """Marks the folder with the ensemble, whose weights must be there.

        Raises:
            InputError: when the folder is of another ensemble or other settings.
        """
        mark = self.folder / "ensemble.json"
        text = json.dumps({"members": self.ensemble.identity(), "settings": self.settings}, indent=1) + "\n"
        if mark.is_file():
            if mark.read_text(encoding="utf-8") != text:
                rule = "the folder is of another ensemble or other settings: remove it, or choose another"
                raise InputError([("", str(mark), rule)])
            logger.info("%d of %d cases are annotated already", len(self.cases) - len(self.remaining), len(self.cases))
            return
        write_text(mark, text)

    def attach(self, engine: Engine) -> None:
        """Attaches to the evaluator that annotates."""
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def finish(self, engine: Engine | None = None) -> None:
        """Writes the datalist of all annotated cases; those that failed are not in it."""
        records = [self._record(case) for case in self.cases if self._is_done(case)]
        write_datalist(self.folder / "datalist.json", {"training": records})
        logger.info("%d annotated cases are listed in %s", len(records), self.folder / "datalist.json")

    def _record(self, case: Case) -> dict[str, Any]:
        kept = {key: value for key, value in case.items() if key in ("image", "stack")}
        soft = {"soft": str(self.file(case, "soft"))} if self.soft else {}
        label = {"label": str(self.file(case, "label")), "label_source": "ensemble", "label_order": LABEL_ORDER}
        return {"case": case_name(case), **kept, **label, **soft}
