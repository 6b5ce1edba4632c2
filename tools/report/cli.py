"""The verb `report`."""

from __future__ import annotations

import logging
from pathlib import Path

from tools.report.page import page
from tools.report.runs import read_folder
from tools.shared.files import write_text

logger = logging.getLogger(__name__)


def report(run_dir: str, *, output: str | None = None, data: str | None = None, cases: int = 2) -> Path:
    """Write one HTML page about the runs in RUN_DIR: curves, scores, worst and best cases, settings, versions.

    The page is one file without links to others; it needs no network and can be mailed. It shows names of cases, paths
    and figures of scans as they are: who must not see those must not get the page.

    Args:
        run_dir: the `output_dir` of a training, evaluation or inference, or a folder with several of them, such as a
            demo has written. What is missing in it is said on the page.
        output: the page. Default: report.html in RUN_DIR.
        data: where the scans lie now, if they were moved: it takes the place of the `dataset_dir` of the runs.
        cases: how many of the worst and how many of the best cases are drawn, of every evaluation.

    Returns:
        The page.

    Raises:
        FileNotFoundError: RUN_DIR or DATA is no folder.
        ValueError: there is no run in RUN_DIR, a file of a run cannot be read, or CASES is negative.
    """
    if cases < 0:
        raise ValueError(f"--cases must not be negative, got {cases}")
    for folder in filter(None, (run_dir, data)):
        if not Path(str(folder)).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    found = read_folder(Path(str(run_dir)))
    target = Path(output) if output else Path(str(run_dir), "report.html")
    text = page(found, data=Path(str(data)) if data else None, shown=cases)
    write_text(target, text)
    logger.info("%s: %.1f MB", target, target.stat().st_size / 1e6)
    return target
