"""PVA's search space: generalized zero-shot learning with a latent space that separates base from novel images.

Ranges are neutral, as in `search_spaces/sre.py`: a weight may be ten times smaller or larger than 1, and what belongs
to sampling lies between nearly nothing and the whole variational objective, where it is 1. The default configuration is
the middle of every range. tau and lambda are not here: for a trained model their exact optimum on the selection split
is found, not sampled.
"""

from models.pva import PVAConfig
from search_spaces import Knob, Space, learning_rate, weight, weight_decay

SPACE = Space(
    name="pva",
    method="PVA",
    config=PVAConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    baselines=("calibrated-stacking", "clip-adapter", "tip-adapter", "tip-adapter-f", "linear-probe", "coop"),
    knobs=(
        Knob(
            name="score",
            scope="static",
            choices=("cosine", "relative"),
            default="relative",
            why="cosine is the article's; relative also asks how near CLIP sees the nearest novel name",
        ),
        Knob(
            name="prompts",
            scope="static",
            choices=("none", "residual"),
            default="residual",
            why="fixed class texts, or a learned offset of each; learned context costs a hundred times more",
        ),
        Knob(
            name="alignment",
            scope="static",
            choices=("kl", "w2"),
            default="kl",
            why="two distances between Gaussians; they differ in how they weigh variances",
        ),
        learning_rate(low=1e-4, high=1e-2, default=1e-3, why="how far training goes in its few hundred steps"),
        weight_decay(why="pulls the encoders' isometry towards zero"),
        Knob(
            name="sigma_init",
            scope="lane",
            low=0.1,
            high=1.0,
            log=True,
            default=0.3,
            why="posterior width at the start, up to the prior's own; means have unit variance per dimension",
        ),
        Knob(
            name="noise",
            scope="lane",
            low=0.1,
            high=1.0,
            log=True,
            default=0.3,
            why="factor on sampled noise: 1 is the variational objective, less trains a sharper classifier",
        ),
        Knob(
            name="w_kl",
            scope="lane",
            low=0.01,
            high=1.0,
            log=True,
            default=0.1,
            why="pull of the prior, up to the objective's own; strong pulls flatten the latent space",
        ),
        weight("w_align", why="keeps images on their texts' posteriors"),
        weight("w_out", why="trains the way back to CLIP's space, which novel images take"),
        weight("kappa", why="novel names in the relative score"),
    ),
)
