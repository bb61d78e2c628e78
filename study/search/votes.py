"""Votes of complete configurations, a file each beside the ledger: `votes/<index>.npz` in a study's folder."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from data_prep.storage import Storage
from study.protocol.votes import Votes

if TYPE_CHECKING:
    from models.heads import Head


METRICS = "metrics"
"""Name, among the heads of a file, of what the folds say of each; a file of an earlier version has none."""


@dataclass(frozen=True, kw_only=True)
class VoteFolder:
    """Where the votes of one search are."""

    storage: Storage
    """The folder of its ledger; votes of a search in a database lie in the study's folder, too."""

    def save(self, index: int, votes: Votes) -> None:
        """Write the votes of a configuration; again, if it was trained again. Raises `UserError`."""
        content = io.BytesIO()
        metrics = np.array(json.dumps(votes.metrics))
        np.savez_compressed(content, allow_pickle=False, **votes.classes, **{METRICS: metrics})
        self.storage.write(_name(index), content.getvalue())

    def load(self, indices: Sequence[int]) -> dict[int, Votes]:
        """Return the votes of those of these configurations that have some, by index."""
        read = {index: self.storage.read(_name(index)) for index in indices}
        return {index: _votes(content) for index, content in read.items() if content is not None}


def _name(index: int) -> str:
    return f"votes/{index:06d}.npz"


def _votes(content: bytes) -> Votes:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        metrics = json.loads(str(arrays[METRICS])) if METRICS in arrays.files else {}
        classes = {cast("Head", head): arrays[head] for head in arrays.files if head != METRICS}
        return Votes(classes=classes, metrics=metrics)
