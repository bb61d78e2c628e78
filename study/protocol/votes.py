"""What a configuration predicts for unlabelled target images, and what the folds say of each head.

Without torch: the actor that judges packs reads it.

Suffixes: F folds, T target images.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.heads import Head


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What one configuration predicts for the target images, on every fold and under every head."""

    classes: "dict[Head, NDArray[np.integer]]"
    """Predicted class (F, T) under each head; int16 where classes are few enough: 2 F bytes an image and head."""
    metrics: "dict[Head, dict[str, float]]" = field(default_factory=dict)
    """What labelled images say of each transductive head: H, S and U of the folds, and its constant."""
