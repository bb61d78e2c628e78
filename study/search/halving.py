"""Successive halving: which configurations go on."""

import math
from collections.abc import Mapping


def rung_epochs(epochs: int, *, eta: int = 2, rungs: int = 2) -> list[int]:
    """Return the epochs after which lanes are judged: the last `rungs` of epochs/eta, epochs/eta^2, ..."""
    return sorted({epochs // eta**i for i in range(1, rungs + 1)} - {0})


class SuccessiveHalving:
    """Asynchronous successive halving (Li et al., 2020), in the order of the draws.

    A configuration goes on if it is in the best 1/eta of its pack and all drawn before it, as far as they came to this
    rung. Those drawn later do not count, even if they were quicker. So a verdict depends on scores alone, and a search
    that was interrupted or that has more actors gives the verdicts of one actor.
    """

    def __init__(self, eta: int = 2) -> None:
        self.eta = eta
        self.scores: dict[int, dict[int, float]] = {}
        """Of each rung's configurations, by their indices."""

    def record(self, epoch: int, scores: Mapping[int, float]) -> None:
        """Enter scores, by index, without judging; those of configurations that are trained again replace the old."""
        self.scores.setdefault(epoch, {}).update(scores)

    def judge(self, epoch: int, scores: Mapping[int, float]) -> list[bool]:
        """Enter a pack's scores, by index, then say for each whether its configuration goes on. Ties go on."""
        self.record(epoch, scores)
        last = max(scores)
        ranked = sorted((score for i, score in self.scores[epoch].items() if i <= last), reverse=True)
        least = ranked[math.ceil(len(ranked) / self.eta) - 1]
        return [score >= least for score in scores.values()]
