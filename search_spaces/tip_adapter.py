"""Training-free Tip-Adapter over all labelled images: alpha and beta are found exactly, nothing is left to search."""

from models.baselines import TipAdapterConfig
from search_spaces import Space

SPACE = Space(
    name="tip-adapter",
    method="Tip-Adapter",
    config=TipAdapterConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(),
)
