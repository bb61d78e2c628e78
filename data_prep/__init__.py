"""Images, class lists and WordNet -> Parquet features. `prepare` builds a cache, `feature_store.load` reads it.

Names are loaded when they are asked for: errors and storage need no torch, which takes seconds to import.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.cache_build import prepare
    from data_prep.errors import UserError
    from data_prep.options import FeatureOptions

if "OMP_WAIT_POLICY" not in os.environ:
    # torch's threads wait for each other with busy cores. Beside another busy process two of them are ten times slower
    # and more (tests/bench/busy_machine.py): let them sleep sooner. OpenMP reads this when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["FeatureOptions", "UserError", "prepare"]

_MODULES = {"FeatureOptions": "options", "UserError": "errors", "prepare": "cache_build"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"data_prep.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'data_prep' has no attribute {name!r}")
