"""Which of two values means enhancing tumour: one for all label maps of a data set."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .regions import label_sets
from .validation import Case, case_name
from .volumes import read_volume, renumbered, voxels_of

__all__ = ["LabelConvention"]

logger = logging.getLogger(__name__)

FROM_2023 = re.compile(r"BraTS-[A-Za-z-]+-\d+-\d+", re.IGNORECASE)
DECATHLON = re.compile(r"BRATS_\d{3}", re.IGNORECASE)
CAVITY = (
    "in BraTS 2024 4 is the resection cavity, which is no class here: set it to 0 in copies of the labels; "
    "if 4 is enhancing tumour, label_order [NCR, ED, NCR, ET] says so"
)

Further = Callable[[Case, Mapping[str, Any]], Iterable[tuple[str, str]]]
Group = tuple[str, tuple[str, ...]]


class LabelConvention:
    """The values of label maps where `label_order` gives enhancing tumour two: 4 until BraTS 2021, 3 from 2023 on.

    The first label map with one of them decides for all cases of its source and order; a line in the log tells.

    Args:
        cases: all cases of a run; each may have a `label_source` and a `label_order` of its own.
        label: key of the label maps, `None` when there are none.
        label_order: classes of the values 1, 2, ... of cases that do not tell, see `regions.label_sets`.

    Raises:
        InputError: when an order is none of NCR, ED and ET.
    """

    def __init__(self, cases: Iterable[Case], *, label: str | None, label_order: Sequence[str]) -> None:
        self.label = label or ""
        self.label_order = tuple(label_order)
        self.chosen: dict[Group, tuple[int, str]] = {}
        self.values = [0]
        for case in cases if label else ():
            group = self._group(case)
            self.values = [*range(max(len(self.values), len(group[1]) + 1))]
            if group not in self.chosen and (found := self._enhancing(group, _read(case, self.label))):
                self.chosen[group] = found[0], f"{case_name(case)}: {case[self.label]}"
                logger.info(
                    "Enhancing tumour is %d in %s labels, as of case %s", found[0], group[0], self.chosen[group][1]
                )

    def _group(self, case: Case) -> Group:
        return str(case.get("label_source") or "manual"), tuple(case.get("label_order") or self.label_order)

    def _enhancing(self, group: Group, voxels: Any) -> list[int]:
        """Returns the values of enhancing tumour in a label map, if its order gives more than one."""
        several = len(label_sets(group[1])) > 1
        values = [value for value, name in enumerate(group[1], 1) if name == "ET"] if several else []
        return [value for value in values if (voxels == value).any()]

    @property
    def settings(self) -> list[Any]:
        """All that `rules_broken` depends on beside the case and its label map, as what JSON can hold."""
        return [self.label_order, sorted(self.chosen.items())]

    def rules_broken(self, case: Case, voxels: Any) -> Iterator[str]:
        """Yields what is wrong with the values of a case's label map."""
        group = self._group(case)
        if voxels.max() > len(group[1]):
            yield f"label values must be among {[*range(len(group[1]) + 1)]}, found {voxels.max()}"
        found = self._enhancing(group, voxels)
        chosen, example = self.chosen.get(group, (None, ""))
        if len(found) > 1:
            yield f"label values {' and '.join(map(str, found))} must not be in one file: {CAVITY}"
        elif found and found[0] != chosen:
            rule = "a data set has one convention, 4 as BraTS until 2021 or 3 as from 2023 on"
            yield f"has {found[0]} for enhancing tumour, and {chosen} has case {example}; {rule}; {CAVITY}"
        elif found == [4] and FROM_2023.match(Path(str(case[self.label])).name):
            yield f"holds 4, and its name is of 2023 or later, where enhancing tumour is 3; {CAVITY}"
        elif len(label_sets(group[1])) > 1 and found != [4] and self._may_be_decathlon(case):
            yield (
                "is called as those of the Decathlon, where 1 is oedema and 2 the core: label_order [ED, NCR, ET] says "
                "so, or [NCR, ED, ET] that it is not"
            )

    def _may_be_decathlon(self, case: Case) -> bool:
        return "label_values" not in case and DECATHLON.fullmatch(case_name(case)) is not None

    def added_to(self, further: Further) -> Further:
        """Returns a check of `cases.check_cases` that looks at the label map too."""

        def both(case: Case, volumes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
            if self.label in volumes:
                volume = volumes[self.label]
                voxels = np.asarray(getattr(volume, "dataobj", volume))
                yield from ((self.label, rule) for rule in self.rules_broken(case, voxels))
            yield from further(case, volumes)

        return both


def _read(case: Case, key: str) -> Any:
    """The voxels of a label map, none where it cannot be read, which other checks tell."""
    with contextlib.suppress(Exception):
        voxels, values = voxels_of(read_volume(str(case[key]))), case.get("label_values")
        return renumbered(voxels, values) if values else voxels
    return np.zeros(0)
