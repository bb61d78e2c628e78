"""Ray Tune's side of the queues of packs: a Tune trial is an actor that trains pack after pack."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.tune.search import Searcher

from study.cluster.capacity import Room
from study.cluster.coordinator import Handed
from study.search.pack_queue import PackQueue
from study.search.records import PackReport


class TuneSearcher(Searcher):
    """Gives actors the packs of several queues: those of the first that has one, so that none waits for another's end.

    No more than the cluster has room for, so that what is drawn later has learned from what ended before. With one
    actor each queue sees and draws exactly what it would see and draw alone. An actor's first pack travels as its
    trial's config `{"pack": Handed}`, the others through the coordinator: a trial for each pack cost the driver twice
    the time. Results are `{"report": PackReport, "done": bool}`; done is an actor without a pack.
    """

    def __init__(
        self, queues: Sequence[PackQueue], room: Room, coordinator: ActorHandle, *, in_order: bool = False
    ) -> None:
        """`room`: what the cluster holds; `coordinator`: knows the running packs, and hands lanes to them.

        `in_order`: whether packs wait at rungs for those before them. Not where packs are refilled: one has later
        configurations than the pack that it would wait for, which may wait for it.
        """
        super().__init__()
        self._in_order = in_order
        self._queues, self._room, self._coordinator = queues, room, coordinator
        self._actors: set[str] = set()  # by their trials
        self._running: dict[str, tuple[PackQueue, Handed]] = {}  # each pack in training and its queue, by the same
        self._failure: Exception | None = None  # of a draw for an actor: Tune would take it for the actor's own

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """Return an actor's first pack; None while there is no room for one or a queue must hear reports.

        FINISHED once all queues are over. Tune asks ten times a second, also while there is nothing to do.
        """
        if self._failure:
            raise self._failure
        if len(self._actors) < self._room_for() and (pack := self._next_pack(trial_id)):
            self._actors.add(trial_id)
            return {"pack": pack}
        return Searcher.FINISHED if all(queue.over for queue in self._queues) else None

    def _room_for(self) -> int:
        """Return how many actors may be there."""
        return self._room.packs(len(self._actors), sum(-(-queue.left // queue.pack) for queue in self._queues))

    def _next_pack(self, trial_id: str) -> Handed | None:
        for queue in self._queues:
            if lanes := queue.next_pack(trial_id):
                pack = Handed(space=queue.space.name, lanes=lanes)
                self._running[trial_id] = queue, pack
                if self._in_order:
                    self._coordinator.begin.remote(pack.space, lanes[0].index)
                return pack
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an actor's report to its pack's queue, and to the actor what takes the freed room, or its next pack."""
        report: PackReport = result["report"]
        handed: Handed | None = None
        if report.over:
            self._running.pop(trial_id)[0].end(trial_id, report)
            try:
                handed = self._next_pack(trial_id) if len(self._actors) <= self._room_for() else None
            except Exception as error:
                self._failure = error
        else:
            queue, _ = self._running[trial_id]
            if lanes := queue.report(trial_id, report):
                handed = Handed(space=queue.space.name, lanes=lanes)
        if handed:
            self._hand(trial_id, handed)

    def _hand(self, trial_id: str, handed: Handed) -> None:
        """Lay configurations out for an actor, which asks for them when its report is dealt with."""
        ray.get(self._coordinator.hand.remote(trial_id, handed))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Forget an actor; a pack that it had died with it."""
        self._actors.discard(trial_id)
        if trial_id in self._running:
            queue, pack = self._running.pop(trial_id)
            self._coordinator.leave.remote(trial_id, pack.space, pack.lanes[0].index)  # it cannot say so itself
            queue.end(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledgers are the state."""
