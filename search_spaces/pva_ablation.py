"""PVA taken apart, as in its article, and the article's own separation score beside ours."""

from search_spaces import Ablation
from search_spaces.pva import SPACE as PVA

SPACE = Ablation(
    name="pva-ablation",
    space=PVA,
    variants={
        "full": {},
        "no variational inference": {"variational": False},
        "no separation": {"separation": False},
        "no residual": {"residual": False},
        "separation by cosine": {"score": "cosine"},
    },
)
