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
    published={
        "full": (77.5, 71.8, 74.5),
        "no variational inference": (77.2, 69.5, 73.2),
        "no separation": (77.8, 68.9, 73.1),
        "no residual": (76.8, 70.1, 73.3),
    },
    published_in="PVA, ECCV 2024: ImageNet, base-to-novel",
)
