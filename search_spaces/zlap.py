"""ZLaP at its authors' settings: label propagation over the target images; no knob is searched."""

from models.transductive import ZLaPConfig
from search_spaces import Space

SPACE = Space(
    name="zlap",
    method="ZLaP",
    config=ZLaPConfig,
    benchmark="icons2emoji",
    criterion="consensus",
    knobs=(),
)
