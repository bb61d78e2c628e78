"""The actor to which all packs of a study report: it judges their lanes together and knows how far they are.

Without torch: its actor starts in a fraction of the time that a pack's actor takes.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import ray

from data_prep.ray_session import draining_nodes
from study.search.halving import SuccessiveHalving
from study.search.records import Lane

DRAINING_EVERY_S = 1.0
"""Seconds between two questions to Ray which nodes are being drained."""


@dataclass(frozen=True, kw_only=True)
class PackProgress:
    """How far a pack is."""

    space: str
    """Name of its search space."""
    lanes: int
    """Configurations it has, those included that have ended and are not reported yet."""
    alive: int
    """Configurations not pruned yet."""
    epoch: int
    """Epochs trained."""
    node: str = ""
    """Id of the node it is on."""


@dataclass(frozen=True, kw_only=True)
class Handed:
    """Configurations for an actor: in the room of ended ones of its pack, or, once that is over, its next pack."""

    space: str
    """Name of their search space."""
    lanes: Sequence[Lane]
    """The configurations."""


@ray.remote(num_cpus=0)
class Coordinator:
    """One per study: judges the lanes of all packs of a search together and knows how far the running packs are."""

    def __init__(self, halvings: Mapping[str, SuccessiveHalving]) -> None:
        """`halvings`: of each search, by the name of its space."""
        self._halvings = halvings
        self._rungs: dict[str, dict[int, int]] = {space: {} for space in halvings}
        self._packs: dict[str, PackProgress] = {}
        self._handed: dict[str, Handed] = {}
        self._draining: Collection[str] = ()
        self._draining_since = 0.0

    def begin(self, space: str, pack: int) -> None:
        """Note that a pack is in training, so that those after it wait for its scores; `pack`: its first index."""
        self._rungs[space][pack] = 0

    def judge(
        self, space: str, pack: int, epoch: int, scores: Mapping[int, float], *, waits: bool = True
    ) -> list[bool] | None:
        """Return for each configuration's score whether the configuration goes on, against those drawn before it.

        None where the pack waits, because one before it is in training and has not come to this rung: ask again. Once
        a pack no longer `waits` for one, nobody does: one that hangs, or has no room yet, delays the search once.
        """
        halving, rungs = self._halvings[space], self._rungs[space]
        if pack in rungs:
            rungs[pack] = max(rungs[pack], epoch)
        late = [before for before, rung in rungs.items() if before < pack and rung < epoch]
        if late and waits:
            halving.record(epoch, scores)  # those after it may wait for these
            return None
        for before in late:
            del rungs[before]
        return halving.judge(epoch, scores)

    def leave(self, actor: str, space: str, pack: int) -> None:
        """Note that an actor's pack is over, or died: nobody waits for it."""
        self._packs.pop(actor, None)
        self._rungs[space].pop(pack, None)

    def report(self, actor: str, progress: PackProgress) -> bool:
        """Note how far an actor's pack is; return whether it must move from a drained node.

        Actors go by the name of their Tune trial.
        """
        self._packs[actor] = progress
        if time.monotonic() - self._draining_since >= DRAINING_EVERY_S:
            self._draining, self._draining_since = draining_nodes(), time.monotonic()
        return progress.node in self._draining

    def packs(self) -> dict[str, PackProgress]:
        """Return the progress of the running packs, by actor; those of a node that is gone went with it."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._packs = {name: pack for name, pack in self._packs.items() if not pack.node or pack.node in alive}
        return dict(self._packs)

    def hand(self, actor: str, handed: Handed) -> None:
        """Lay configurations out for an actor, which asks for them with `handed_to`."""
        self._handed[actor] = handed

    def handed_to(self, actor: str) -> Handed | None:
        """Return what is laid out for an actor, once."""
        return self._handed.pop(actor, None)
