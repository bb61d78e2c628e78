"""Calibrated stacking has no searched knob: its constant is found exactly, like every inference-time knob."""

from models.baselines import CalibratedStackingConfig
from search_spaces import Space

SPACE = Space(
    name="calibrated-stacking",
    method="Calibrated CLIP",
    config=CalibratedStackingConfig,
    benchmark="icons2emoji-gzsl",
    criterion="h",
    knobs=(),
)
