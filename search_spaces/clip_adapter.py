"""CLIP-Adapter: a bottleneck on the image feature."""

from models.baselines import CLIPAdapterConfig
from search_spaces import Knob, Space, learning_rate, weight_decay

SPACE = Space(
    name="clip-adapter",
    method="CLIP-Adapter",
    config=CLIPAdapterConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        Knob(
            name="width",
            scope="static",
            choices=(32, 64, 128),
            default=64,
            why="bottleneck; the article takes a quarter of D",
        ),
        learning_rate(
            low=1e-4,
            high=1e-2,
            default=1e-3,
            why="the bottleneck starts silent and has few steps",
        ),
        weight_decay(),
        Knob(
            name="ratio",
            scope="lane",
            low=0.0,
            high=1.0,
            default=0.5,
            why="share of the adapter in the feature: from nothing to nothing else",
        ),
    ),
)
