"""The score that chooses weights: Dice of the tumour's regions as the reference smooths and averages it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.metrics import CumulativeIterationMetric

from .shared.regions import REGIONS, region_mask

__all__ = ["MovingScore", "SmoothedDice", "smoothed_dice"]


def smoothed_dice(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Dice of two masks of one shape, `(2 |A & B| + 1) / (|A| + |B| + 1)`: 1 where both are empty, never undefined."""
    return (2 * (found & true).sum() + 1) / (found.sum() + true.sum() + 1)


class SmoothedDice(CumulativeIterationMetric):
    """Mean over cases of the mean `smoothed_dice` of some regions.

    Args:
        regions: names in `REGIONS`.
    """

    def __init__(self, regions: Sequence[str] = tuple(REGIONS)) -> None:
        super().__init__()
        self.regions = list(regions)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Scores logits `(B, C, H, W, D)` against class indices `(B, 1, H, W, D)`; returns `(B, regions)`."""
        if y is None:
            raise ValueError("a label is needed")
        scores = [
            smoothed_dice(*(region_mask(volume, name, values=range(4)) for volume in pair))
            for pair in zip(y_pred.max(1).indices, y[:, 0], strict=True)
            for name in self.regions
        ]
        return torch.stack(scores).view(-1, len(self.regions))

    def aggregate(self) -> torch.Tensor:
        """Returns the mean over cases and regions."""
        scores = self.get_buffer()
        if not isinstance(scores, torch.Tensor):
            raise ValueError("no case was scored")
        return scores.mean()


class MovingScore:
    """Handler of a validator: its key metric averaged over epochs, exponentially and without the bias of its start.

    The reference computes it and chooses by the metric itself; so do we.

    Args:
        decay: weight of the past.
    """

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self.running = 0.0
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Attaches to a validator with a key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Adds the score of this validation and puts the average into the metrics, as `<key metric>_moving`."""
        name = engine.state.key_metric_name
        self.running = self.decay * self.running + (1 - self.decay) * float(engine.state.metrics[name])
        self.count += 1
        engine.state.metrics[f"{name}_moving"] = self.running / (1 - self.decay**self.count)

    def state_dict(self) -> dict[str, Any]:
        """Returns the average so far."""
        return {"running": self.running, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the average."""
        self.running, self.count = state["running"], state["count"]
