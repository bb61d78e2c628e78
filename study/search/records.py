"""What a search keeps of its configurations."""

from dataclasses import dataclass
from typing import Literal

from search_spaces import Value

Objective = Literal["h", "seen,unseen"]


State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A configuration that was asked for, and the trial that stands for it now."""

    number: int
    """Number of the trial."""
    trial_id: int
    """The storage's id of the trial."""
    index: int
    """0, 1, 2, ... in the order asked; kept when the configuration is trained again."""
    seed: int
    """Seed of its training; kept as well."""
    params: dict[str, Value]
    """Active knobs and their values."""
    deaths: int = 0
    """Packs that have died under it."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A finished configuration, as the ledger has it."""

    index: int
    """0, 1, 2, ... in the order asked."""
    number: int
    """Number of the Optuna trial that finished it."""
    config_id: str
    """`<space>-<index>`: its name in every output."""
    params: dict[str, Value]
    """Active knobs and their values."""
    seed: int
    """Seed it was trained with."""
    state: State
    """What became of it."""
    score: float | None
    """What selection maximises, at its last epoch; None if failed."""
    metrics: dict[str, float]
    """Selection metrics at its last epoch."""
    curve: list[tuple[int, float]]
    """(epoch, score) at every rung and at the end."""
    epochs: int
    """Epochs trained."""
    train_seconds: float
    """Its share of its pack's time."""
    reason: str
    """Why it failed."""
    pareto: bool
    """On the Pareto front of a two-objective study."""
