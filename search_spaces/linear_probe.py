"""Linear probe that starts from CLIP's text features."""

from models.baselines import LinearProbeConfig
from search_spaces import Space, learning_rate, weight_decay

SPACE = Space(
    name="linear-probe",
    method="Linear probe",
    config=LinearProbeConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(
        learning_rate(
            low=1e-4,
            high=1e-2,
            default=1e-3,
            why="how far base classes leave their texts; unseen ones stay",
        ),
        weight_decay(),
    ),
)
