"""Successive halving: which configurations go on."""

import math
from collections.abc import Sequence


def rung_epochs(epochs: int, *, eta: int = 2, rungs: int = 2) -> list[int]:
    """Return the epochs after which lanes are judged: the last `rungs` of epochs/eta, epochs/eta^2, ..."""
    return sorted({epochs // eta**i for i in range(1, rungs + 1)} - {0})


class SuccessiveHalving:
    """Asynchronous successive halving (Li et al., 2020): a lane goes on if it is in the best 1/eta of all so far.

    Its scores outlive packs, so a pack's lanes are judged against every lane that ever reached that epoch.
    """

    def __init__(self, eta: int = 2) -> None:
        self.eta = eta
        self.scores: dict[int, list[float]] = {}

    def record(self, epoch: int, scores: Sequence[float]) -> None:
        """Enter scores without judging (a resumed search enters those of its ledger)."""
        self.scores.setdefault(epoch, []).extend(scores)

    def withdraw(self, epoch: int, score: float) -> None:
        """Remove a score: the lane that had it is about to enter another one."""
        self.scores[epoch].remove(score)

    def judge(self, epoch: int, scores: Sequence[float]) -> list[bool]:
        """Enter scores, then say for each whether its lane goes on. Ties go on."""
        self.record(epoch, scores)
        ranked = sorted(self.scores[epoch], reverse=True)
        least = ranked[math.ceil(len(ranked) / self.eta) - 1]
        return [score >= least for score in scores]
