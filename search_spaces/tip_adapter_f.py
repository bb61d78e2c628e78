"""Tip-Adapter-F: the cached features are trained; alpha and beta are swept exactly."""

from functools import partial

from models.baselines import TipAdapterConfig
from search_spaces import Knob, Space

SPACE = Space(
    name="tip-adapter-f",
    method="Tip-Adapter-F",
    config=partial(TipAdapterConfig, variant="F"),
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        Knob(
            name="lr",
            scope="lane",
            low=1e-4,
            high=1e-2,
            log=True,
            default=1e-3,
            why="keys of unit length move by hundredths",
        ),
        Knob(
            name="weight_decay",
            scope="lane",
            low=1e-6,
            high=1e-1,
            log=True,
            default=1e-4,
            why="pulls what is trained back to its start",
        ),
    ),
)
