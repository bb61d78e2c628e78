"""SRE-CLIP Adapter taken apart, as in its article, and two controls of our own."""

from search_spaces import Ablation
from search_spaces.sre import SPACE as SRE

SPACE = Ablation(
    name="sre-ablation",
    space=SRE,
    variants={
        "full": {},
        "no adapter": {"adapter": "none"},
        "no GCN (residual only)": {"gcn_layers": 0},
        "no residual (GCN only)": {"residual": False},
        "no L_srs": {"w_srs": 0.0},
        "no L_align": {"w_align": 0.0},
        "no graph (A = I)": {"adjacency": "identity"},
        "no target losses": {"w_ent": 0.0, "w_div": 0.0, "w_bal": 0.0},
        "no head": {"head": "none"},
    },
    needs={"no residual (GCN only)": ("gcn_layers", (1, 2))},
)
