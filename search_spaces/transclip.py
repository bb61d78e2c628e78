"""TransCLIP (zero-shot form) at its authors' settings: a mixture fitted to the target images; no knob is searched."""

from models.transductive import TransCLIPConfig
from search_spaces import Space

SPACE = Space(
    name="transclip",
    method="TransCLIP",
    config=TransCLIPConfig,
    benchmark="icons2emoji",
    criterion="consensus",
    knobs=(),
)
