"""Ray Tune's side of the queues of packs: a Tune trial is a pack."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.tune.search import Searcher

from study.cluster.capacity import Room
from study.search.pack_queue import PackQueue
from study.search.records import PackReport


class TuneSearcher(Searcher):
    """Suggests the packs of several queues: those of the first that has one, so that no actor waits for another's end.

    No more than the cluster has room for, so that what is drawn later has learned from what ended before. With one
    actor each queue sees and draws exactly what it would see and draw alone. A pack travels as the trial's config
    `{"space": name, "lanes": [Lane, ...]}`, its result as `{"report": PackReport, "done": bool}`.
    """

    def __init__(self, queues: Sequence[PackQueue], room: Room, coordinator: ActorHandle) -> None:
        """`room`: what the cluster holds; `coordinator`: knows the running packs, and hands lanes to them."""
        super().__init__()
        self._queues, self._room, self._coordinator = queues, room, coordinator
        self._queue_of: dict[str, PackQueue] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """Return a pack; None while there is no room or a queue must hear reports; FINISHED once all queues are over.

        Tune asks ten times a second, also while there is nothing to do.
        """
        left = sum(-(-queue.left // queue.pack) for queue in self._queues)
        if len(self._queue_of) >= self._room.packs(len(self._queue_of), left):
            return None
        for queue in self._queues:
            if lanes := queue.next_pack(trial_id):
                self._queue_of[trial_id] = queue
                return {"space": queue.space.name, "lanes": lanes}
        return Searcher.FINISHED if all(queue.over for queue in self._queues) else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the report of a running pack to its queue, and the lanes that take the freed room to the pack."""
        lanes = self._queue_of[trial_id].report(trial_id, result["report"])
        if lanes:  # the pack asks for them when the report that freed their room is dealt with
            ray.get(self._coordinator.refill.remote(trial_id, lanes))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the last report of a pack to its queue; there is none where its actor died."""
        report: PackReport | None = (result or {}).get("report")
        if report is None:  # it cannot say itself that it trains no more
            self._coordinator.report.remote(trial_id, None)
        self._queue_of.pop(trial_id).end(trial_id, report)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledgers are the state."""
