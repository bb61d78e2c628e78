"""What became of one configuration's training."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class LaneResult:
    """What became of one configuration."""

    state: Literal["complete", "pruned", "failed"] = "complete"
    """Trained to the end, stopped at a rung, or diverged."""
    score: float | None = None
    """What selection maximises, at the last epoch trained; None if failed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """val_h_mean and val_h_std over folds, val_seen, val_unseen, and target_mi in [0, 1]."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, score) at every rung and at the end."""
    epochs: int = 0
    """Epochs trained."""
    train_seconds: float = 0.0
    """Its share of the pack's time."""
    error: str = ""
    """Why it failed."""
