"""Tip-Adapter-F: the cached features are trained; alpha and beta are swept exactly."""

from functools import partial

from models.baselines import TipAdapterConfig
from search_spaces import Space, learning_rate, weight_decay

SPACE = Space(
    name="tip-adapter-f",
    method="Tip-Adapter-F",
    config=partial(TipAdapterConfig, variant="F"),
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        learning_rate(
            low=1e-4,
            high=1e-2,
            default=1e-3,
            why="keys of unit length move by hundredths",
        ),
        weight_decay(),
    ),
)
