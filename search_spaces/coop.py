"""CoOp: one learned context for all class names, nothing else ("prompts only")."""

from functools import partial

from models.baselines import CoOpConfig
from search_spaces import Knob, Space

SPACE = Space(
    name="coop",
    method="CoOp",
    # a step costs one pass of the class names through the text encoder, however many images are in it: few large
    # batches reach the accuracy of many small ones for a fraction of the time
    config=partial(CoOpConfig, batch_size=640),
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        Knob(
            name="lr",
            scope="lane",
            low=5e-4,
            high=3e-2,
            log=True,
            default=5e-3,
            why="four vectors are trained in few steps: rates are larger than an adapter's",
        ),
        Knob(
            name="weight_decay",
            scope="lane",
            low=1e-6,
            high=1e-1,
            log=True,
            default=1e-4,
            why="pulls the context towards zero",
        ),
    ),
)
