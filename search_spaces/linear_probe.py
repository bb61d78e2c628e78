"""Linear probe that starts from CLIP's text features."""

from models.baselines import LinearProbeConfig
from search_spaces import Knob, Space

SPACE = Space(
    name="linear-probe",
    method="Linear probe",
    config=LinearProbeConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        Knob(
            name="lr",
            scope="lane",
            low=1e-4,
            high=1e-2,
            log=True,
            default=3e-3,
            why="how far base classes leave their texts; unseen ones stay",
        ),
        Knob(
            name="weight_decay",
            scope="lane",
            low=1e-6,
            high=1e-1,
            log=True,
            default=1e-4,
            why="pulls what is trained back to its start",
        ),
    ),
)
