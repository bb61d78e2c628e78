"""Everything around a study. What a notebook needs is importable from here, and loaded when it is asked for."""

from typing import Any

__all__ = ["Adapter", "load_benchmark", "plot", "read_leaderboard", "run_study"]


def __getattr__(name: str) -> Any:
    if name == "Adapter":
        from study.outputs.prediction import Adapter

        return Adapter
    if name in __all__:
        from study import api  # torch, Ray and plotly take seconds: --help does not wait for them

        return getattr(api, name)
    raise AttributeError(name)
