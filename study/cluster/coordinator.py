"""The board on which all packs of a study are judged (successive halving) and report how far they are.

Without torch: its actor starts in a fraction of the time that one of a pack takes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from study.search.halving import RungBoard

LOOK_EVERY_S = 1.0
"""Seconds between looks at which nodes are being drained."""


@dataclass(frozen=True, kw_only=True)
class PackProgress:
    """How far a pack is."""

    space: str
    """Name of its search space."""
    lanes: int
    """Configurations it began with."""
    alive: int
    """Configurations not pruned yet."""
    epoch: int
    """Epochs trained."""
    node: str = ""
    """Id of the node it is on."""


@ray.remote(num_cpus=0)
class Board:
    """One per study: judges the lanes of all packs of a search together and knows how far the running packs are."""

    def __init__(self, rungs: Mapping[str, RungBoard]) -> None:
        """`rungs`: of each search, by the name of its space."""
        self._rungs = rungs
        self._entered: dict[tuple[str, int], dict[int, tuple[float, bool]]] = {}
        self._packs: dict[str, PackProgress] = {}
        self._given: dict[str, list[dict[str, Any]]] = {}
        self._drained: Mapping[str, int] = {}
        self._looked = 0.0

    def judge(self, space: str, epoch: int, scores: Mapping[int, float]) -> list[bool]:
        """For each configuration's score, whether it goes on (successive halving against all lanes so far).

        One that is trained again, because its pack died, keeps its verdict; with another score than it had, this one
        takes the old one's place and is judged.
        """
        entered = self._entered.setdefault((space, epoch), {})
        new = {i: score for i, score in scores.items() if i not in entered or entered[i][0] != score}
        for i in new.keys() & entered.keys():
            self._rungs[space].scores[epoch].remove(entered[i][0])
        verdicts = self._rungs[space].judge(epoch, list(new.values())) if new else []
        entered |= {i: (score, verdict) for (i, score), verdict in zip(new.items(), verdicts, strict=True)}
        return [entered[i][1] for i in scores]

    def report(self, pack: str, progress: PackProgress | None) -> bool:
        """How far a pack is; None when it is finished. Whether it should move: its node is being drained."""
        if progress is None:
            self._packs.pop(pack, None)
            return False
        self._packs[pack] = progress
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            # no public name; Ray's own Data and Train ask this way
            self._drained, self._looked = ray._private.state.state.get_draining_nodes(), time.monotonic()
        return progress.node in self._drained

    def packs(self) -> dict[str, PackProgress]:
        """Progress of the running packs."""
        return dict(self._packs)

    def give(self, pack: str, lanes: list[dict[str, Any]]) -> None:
        """Lanes to refill a pack with."""
        self._given[pack] = lanes

    def take(self, pack: str) -> list[dict[str, Any]]:
        """The lanes that a pack was given, once."""
        return self._given.pop(pack, [])
