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
        self._verdicts: dict[tuple[str, int], dict[int, tuple[float, bool]]] = {}
        self._packs: dict[str, PackProgress] = {}
        self._handed: dict[str, Handed] = {}
        self._draining: Collection[str] = ()
        self._draining_since = 0.0

    def judge(self, space: str, epoch: int, scores: Mapping[int, float]) -> list[bool]:
        """Return for each configuration's score whether the configuration goes on, against all lanes so far.

        A configuration that is trained again, because its pack died, keeps its verdict; with another score than it
        had, the new score takes the old one's place and is judged.
        """
        halving, verdicts = self._halvings[space], self._verdicts.setdefault((space, epoch), {})
        new = {i: score for i, score in scores.items() if i not in verdicts or verdicts[i][0] != score}
        for i in new.keys() & verdicts.keys():
            halving.withdraw(epoch, verdicts[i][0])
        judged = halving.judge(epoch, list(new.values())) if new else []
        verdicts |= {i: (score, goes_on) for (i, score), goes_on in zip(new.items(), judged, strict=True)}
        return [verdicts[i][1] for i in scores]

    def report(self, actor: str, progress: PackProgress | None) -> bool:
        """Note how far an actor's pack is, None when it is finished; return whether it must move from a drained node.

        Actors go by the name of their Tune trial.
        """
        if progress is None:
            self._packs.pop(actor, None)
            return False
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
