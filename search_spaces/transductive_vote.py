"""The vote of ZLaP, TransCLIP and InMaP: SRE-CLIP's head on CLIP's own features; no knob is searched."""

from models.heads import TransductiveVoteConfig
from search_spaces import Space

SPACE = Space(
    name="transductive-vote",
    method="Transductive vote",
    config=TransductiveVoteConfig,
    benchmark="icons2emoji",
    criterion="consensus",
    knobs=(),
)
