"""Images, class lists and WordNet -> Parquet features. `prepare` builds a cache, `feature_store.load` reads it."""

from data_prep.errors import UserError
from data_prep.prepare import prepare

__all__ = ["UserError", "prepare"]
