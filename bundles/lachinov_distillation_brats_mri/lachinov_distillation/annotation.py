"""An annotation run that may be interrupted: complete files only, nothing done twice, a datalist at the end."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import NibabelWriter

from .cases import Case, InputError, case_name
from .datalist import write_datalist
from .ensemble import Ensemble

__all__ = ["Annotation", "AtomicNiftiWriter"]

logger = logging.getLogger(__name__)

LABEL_ORDER = ["NCR", "ED", "ET", "ET"]


class AtomicNiftiWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, whose file is there complete or not at all, even when the disk is full."""

    def write(self, filename: str | Path, verbose: bool = False, **kwargs: Any) -> None:
        """Writes the volume to `filename`.

        Raises:
            OSError: when it cannot be written; what was written of it is removed.
        """
        path = Path(filename)
        partial = path.with_name(f".partial-{path.name}")  # the format goes by the ending
        try:
            super().write(partial, verbose=verbose, **kwargs)
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


class Annotation:
    """What an annotation run leaves in its folder, and how it goes on after an interruption.

    `<case>/<case>_{soft,disagreement,label}.nii.gz` in this order, so a case with a label map is done; then
    `datalist.json` for the student's training. `ensemble.json` tells which ensemble the folder is of.

    Args:
        cases: all scans to annotate, as `datalist.unlabelled_cases` lists them.
        output_dir: the folder.
        ensemble: the ensemble.
        settings: what else must be the same in all of a folder's annotations.
        soft: whether region probabilities are saved too.
    """

    def __init__(
        self, cases: Sequence[Case], *, output_dir: str, ensemble: Ensemble, settings: Any = None, soft: bool = False
    ) -> None:
        self.cases = list(cases)
        self.folder = Path(output_dir)
        self.ensemble = ensemble
        self.settings = settings
        self.soft = soft

    def file(self, case: Case, kind: str) -> Path:
        """Returns where the `label`, `soft` or `disagreement` map of a case lies."""
        name = case_name(case)
        return self.folder / name / f"{name}_{kind}.nii.gz"

    @property
    def remaining(self) -> list[Case]:
        """The cases that are not annotated yet."""
        return [case for case in self.cases if not self.file(case, "label").is_file()]

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
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = mark.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(mark)

    def attach(self, engine: Engine) -> None:
        """Attaches to the evaluator that annotates."""
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def finish(self, engine: Engine | None = None) -> None:
        """Writes the datalist of all annotated cases."""
        records = [self._record(case) for case in self.cases]
        write_datalist(self.folder / "datalist.json", {"training": records})
        logger.info("%d annotated cases are listed in %s", len(records), self.folder / "datalist.json")

    def _record(self, case: Case) -> dict[str, Any]:
        kept = {key: value for key, value in case.items() if key in ("image", "stack")}
        soft = {"soft": str(self.file(case, "soft"))} if self.soft else {}
        label = {"label": str(self.file(case, "label")), "label_source": "ensemble", "label_order": LABEL_ORDER}
        return {"case": case_name(case), **kept, **label, **soft}
