"""Everything around a study. What a notebook needs is importable from here, and loaded when it is asked for."""

from importlib import import_module
from typing import Any

import data_prep  # noqa: F401 - says how torch's threads wait, before torch is loaded

__all__ = ["Adapter", "load_benchmark", "plot", "read_leaderboard", "register", "run_study", "show_leaderboard"]

_MODULES = {"Adapter": "outputs.prediction", "register": "training.methods"}
"""Where names are that are not in `api`."""


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch, Ray and plotly take seconds: --help does not wait for them
        return getattr(import_module(f"study.{_MODULES.get(name, 'api')}"), name)
    raise AttributeError(name)
