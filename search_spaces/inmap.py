"""InMaP with Sinkhorn at its authors' settings: class proxies among target images; no knob is searched."""

from models.transductive import InMaPConfig
from search_spaces import Space

SPACE = Space(
    name="inmap",
    method="InMaP",
    config=InMaPConfig,
    benchmark="icons2emoji",
    criterion="consensus",
    knobs=(),
)
