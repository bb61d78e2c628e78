"""Checkpoints of packs in training: where a worker, node or driver dies, searches and refits go on from them.

Weights, optimiser, random streams and results so far, as safetensors: a checkpoint is data, nothing in it is run.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.data_parallel import workers
from study.training.pack import Pack
from study.training.scoring import LaneResult

LEAST_SECONDS = 10.0
"""Between two checkpoints of a pack; most packs have ended by then."""

COST = 50
"""A pack trains this many times as long as its last checkpoint took to write, before it writes the next one."""

RESULTS = "results"
"""Name of the tensor that holds results, as the bytes of their JSON."""


class Store(Protocol):
    """Where checkpoints are: files of any kind, by name."""

    def load(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none."""

    def save(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


class Moving(Exception):
    """A pack has left its node, its checkpoint is written."""


class PackCheckpoint:
    """The checkpoint of one pack."""

    def __init__(self, store: Store, name: str, *, every: int = 1, seconds: float = LEAST_SECONDS) -> None:
        """`name`: of the pack's file. `every`, `seconds`: epochs and seconds between two checkpoints at least."""
        self._store, self._name, self._every, self.seconds = store, name, every, seconds
        self._since, self._took, self._written = 0.0, 0.0, False
        self.moving = False
        """Set where the pack must leave its node: it writes a checkpoint at the end of its epoch, whatever the time."""

    def load(self) -> tuple[dict[str, Tensor], list[LaneResult]] | None:
        """Return the pack's state and its results so far from the last checkpoint, None if there is none."""
        content = self._store.load(self._name)
        self._since = monotonic()
        if not content:
            return None
        self._written = True
        state = load(content)
        results = json.loads(bytes(state.pop(RESULTS).tolist()))
        return state, [LaneResult(**r | {"curve": [(e, s) for e, s in r["curve"]]}) for r in results]

    def save(self, pack: Pack, results: Sequence[LaneResult] = ()) -> None:
        """Write a checkpoint at the end of an epoch, if one is due. Raises `Moving`.

        All workers of a pack hold the same lanes, so the first worker writes it.
        """
        started, epoch = monotonic(), pack.epoch[0]
        due = epoch % self._every == 0 and started - self._since >= max(self.seconds, COST * self._took)
        if workers()[0] != 0 or not (due or self.moving or epoch == pack.epochs):
            return
        encoded = json.dumps([asdict(r) for r in results]).encode()
        content = save(pack.state() | {RESULTS: torch.tensor(list(encoded), dtype=torch.uint8)})
        self._store.save(self._name, content)
        self._since, self._written = monotonic(), True
        self._took = self._since - started
        if self.moving:
            raise Moving

    def remove(self) -> None:
        """Remove the checkpoint of a pack that has ended: its results are on their way to the ledger."""
        if self._written:
            self._store.remove(self._name)
