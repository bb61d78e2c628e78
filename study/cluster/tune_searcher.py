"""Ray Tune's side of the queues of packs: a Tune trial is a pack."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from study.search.pack_queue import PackQueue
from study.search.records import Lane, PackReport


class TuneSearcher(Searcher):
    """Suggests the packs of several queues: those of the first that has one, so that no actor waits for another's end.

    With one actor each queue sees and draws exactly what it would see and draw alone. A pack travels as the trial's
    config `{"space": name, "lanes": [Lane, ...]}`, its result as `{"report": PackReport, "done": bool}`.
    """

    def __init__(
        self, queues: Sequence[PackQueue], hand_over: Callable[[str, Sequence[Lane]], object] | None = None
    ) -> None:
        """`hand_over`: gives lanes to a running pack; only for queues that refill packs."""
        super().__init__()
        self._queues, self._hand_over = queues, hand_over
        self._queue_of: dict[str, PackQueue] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """Return a pack; None while a queue must hear reports first; FINISHED once all queues are over."""
        for queue in self._queues:
            if lanes := queue.next_pack(trial_id):
                self._queue_of[trial_id] = queue
                return {"space": queue.space.name, "lanes": lanes}
        return Searcher.FINISHED if all(queue.over for queue in self._queues) else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the report of a running pack to its queue, and the lanes that take the freed room to the pack."""
        lanes = self._queue_of[trial_id].report(trial_id, result["report"])
        if lanes and self._hand_over:
            self._hand_over(trial_id, lanes)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the last report of a pack to its queue; there is none where its actor died."""
        report: PackReport | None = (result or {}).get("report")
        self._queue_of.pop(trial_id).end(trial_id, report)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledgers are the state."""
