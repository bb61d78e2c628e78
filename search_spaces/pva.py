"""PVA's search space: generalized zero-shot learning with a latent space that separates base from novel images.

tau and lambda are not here: for a trained model their exact optimum on the selection split is found, not sampled.
"""

from models.pva import PVAConfig
from search_spaces import Knob, Space, learning_rate, weight_decay

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
        learning_rate(
            low=2e-4,
            high=5e-3,
            default=1e-3,
            why="below it the latent classifier stays CLIP's, above it novel classes are lost",
        ),
        weight_decay(why="pulls the encoders' isometry towards zero"),
        Knob(
            name="sigma_init",
            scope="lane",
            low=0.1,
            high=1.0,
            log=True,
            default=0.5,
            why="posterior width at the start; means have unit variance per dimension",
        ),
        Knob(
            name="noise",
            scope="lane",
            low=0.1,
            high=1.0,
            log=True,
            default=1.0,
            why="factor on sampled noise: 1 is the variational objective, less trains a sharper classifier",
        ),
        Knob(
            name="w_kl",
            scope="lane",
            low=1e-3,
            high=0.3,
            log=True,
            default=0.01,
            why="pull of the prior; strong pulls flatten the latent space",
        ),
        Knob(
            name="w_align",
            scope="lane",
            low=0.05,
            high=2.0,
            log=True,
            default=0.5,
            why="keeps images on their texts' posteriors",
        ),
        Knob(
            name="w_out",
            scope="lane",
            low=0.03,
            high=3.0,
            log=True,
            default=0.3,
            why="trains the way back to CLIP's space, which novel images take",
        ),
        Knob(
            name="kappa",
            scope="lane",
            low=0.3,
            high=2.0,
            log=True,
            default=1.0,
            why="weight of novel names in the relative score",
        ),
    ),
)
