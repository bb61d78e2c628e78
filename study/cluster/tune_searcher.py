"""Ray Tune's side of the queue of packs."""

from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher

from study.search.pack_queue import PackSearcher


class SearchersInTurn(Searcher):
    """Several searches as one: a pack of the first that has one to give, so that no actor waits for another's end.

    With one actor each search sees and draws just what it would see and draw alone.
    """

    def __init__(self, searchers: Sequence[PackSearcher]) -> None:
        super().__init__()
        self._searchers = searchers
        self._asked: dict[str, PackSearcher] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """A pack; None while a search must hear results first; FINISHED once all searches are."""
        answers = []
        for searcher in self._searchers:
            answers.append(searcher.suggest(trial_id))
            if isinstance(answers[-1], dict):
                self._asked[trial_id] = searcher
                return answers[-1]
        return None if None in answers else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Told to the search that asked for the pack."""
        self._asked[trial_id].on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told to the search that asked for the pack."""
        self._asked.pop(trial_id).on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledgers are the state."""
