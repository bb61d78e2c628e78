"""Checkpoints of packs in training, of searches and refits: where a worker, node or driver dies, they go on from them.

Weights, optimiser, random streams and results so far, as safetensors: a checkpoint is data, nothing in it is run.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any

import ray
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.data_parallel import workers
from study.training.lane_result import LaneResult
from study.training.pack import Pack

LEAST_SECONDS = 10.0
"""Between two checkpoints of a pack; most packs have ended by then."""

COST = 50
"""A pack trains this many times as long as its last checkpoint took to write, before it writes the next one."""

RESULTS = "results"
"""Name of the tensor that holds results, as the bytes of their JSON."""


class Moving(Exception):
    """A pack has left its node, its checkpoint is written."""


class Checkpoints:
    """Where one pack's go, as its workers see it."""

    def __init__(self, keeper: Any, name: str, *, every: int = 1, seconds: float = LEAST_SECONDS) -> None:
        """`keeper`: handle of its `Keeper`; `name`: of the pack's file. At least so many epochs and seconds apart."""
        self._keeper, self._name, self._every, self.seconds = keeper, name, every, seconds
        self._since, self._took, self._written = 0.0, 0.0, False
        self.moving = False
        """Set where the pack must leave its node: at the end of its epoch it writes a checkpoint, whatever the time."""

    def load(self) -> tuple[dict[str, Tensor], list[LaneResult]] | None:
        """The last one, if there is any: the pack's state, and its results so far."""
        content = ray.get(self._keeper.load.remote(self._name))
        self._since = monotonic()
        if not content:
            return None
        self._written = True
        state = load(content)
        results = json.loads(bytes(state.pop(RESULTS).tolist()))
        return state, [LaneResult(**r | {"curve": [(e, s) for e, s in r["curve"]]}) for r in results]

    def save(self, pack: Pack, results: Sequence[LaneResult] = ()) -> None:
        """Write one at the end of an epoch, if it is time to. Raises `Moving`.

        All workers of a pack hold the same lanes, so the first one does it.
        """
        started, epoch = monotonic(), pack.epoch[0]
        due = epoch % self._every == 0 and started - self._since >= max(self.seconds, COST * self._took)
        if workers()[0] != 0 or not (due or self.moving or epoch == pack.epochs):
            return
        told = json.dumps([asdict(r) for r in results]).encode()
        content = save(pack.state() | {RESULTS: torch.tensor(list(told), dtype=torch.uint8)})
        ray.get(self._keeper.save.remote(self._name, content))
        self._since, self._written = monotonic(), True
        self._took = self._since - started
        if self.moving:
            raise Moving

    def remove(self) -> None:
        """The pack has ended: its results are on their way to the ledger."""
        if self._written:
            self._keeper.remove.remote(self._name)
