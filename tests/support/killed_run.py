"""A run that stops for good at a chosen moment, so that the test that started it can kill it there.

`python -m tests.support.killed_run MOMENT MARKER ARGUMENTS`: MOMENT is `step` (in the second epoch), `state` (half of
the second training state is written) or `weights` (half of the first weights are written); MARKER is a file that
appears when the moment has come; ARGUMENTS is a JSON file with those of `monai.bundle.run`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import monai.bundle
import torch


def main(moment: str, marker: str, arguments: str) -> None:
    """Runs until the moment."""
    save, backward = torch.save, torch.autograd.backward
    states = 0

    def stop() -> None:
        Path(marker).touch()
        time.sleep(600)

    def slow_save(content: Any, file: Any) -> None:
        nonlocal states
        is_state = "state" in Path(file.name).name
        if (moment == "state" and is_state and states == 1) or (moment == "weights" and not is_state):
            buffer = io.BytesIO()
            save(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            stop()
        save(content, file)
        states += is_state

    def slow_backward(*args: Any, **kwargs: Any) -> None:
        if moment == "step" and states == 1:
            stop()
        backward(*args, **kwargs)

    torch.save, torch.autograd.backward = slow_save, slow_backward  # type: ignore[assignment]
    monai.bundle.run(**json.loads(Path(arguments).read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])
