"""CLIP-Adapter: a bottleneck on the image feature."""

from models.baselines import CLIPAdapterConfig
from search_spaces import Knob, Space

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
        Knob(
            name="lr",
            scope="lane",
            low=1e-4,
            high=1e-2,
            log=True,
            default=1e-3,
            why="the bottleneck starts silent and has few steps",
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
        Knob(
            name="ratio",
            scope="lane",
            low=0.05,
            high=0.8,
            default=0.2,
            why="share of the adapter in the feature; the article's 0.2 to 0.6 and around",
        ),
    ),
)
