"""CoOp: one learned context for all class names, nothing else ("prompts only")."""

from functools import partial

from models.baselines import CoOpConfig
from search_spaces import Space, learning_rate, weight_decay

SPACE = Space(
    name="coop",
    method="CoOp",
    # a step costs one pass of the class names through the text encoder, however many images are in it: few large
    # batches reach the accuracy of many small ones for a fraction of the time
    config=partial(CoOpConfig, batch_size=640),
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        learning_rate(
            low=1e-4,
            high=1e-2,
            default=1e-3,
            why="around the article's 2e-3; four vectors are trained in few steps",
        ),
        weight_decay(why="pulls the context towards zero"),
    ),
)
