"""The choice at the end of a search: which configurations, under which heads, are refitted.

Suffixes: T target images, C classes.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.heads import Head
from study.evaluation.leaderboard import Score
from study.protocol.consensus import Votes, agreements, consensus, divided_consensus, noise_of_difference
from study.search.records import Configuration
from study.training.pack import Division


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration that the search completed, chosen for a refit."""

    configuration: Configuration
    """The configuration."""
    head: Head = "none"
    """Who classifies at inference."""
    of_head: Mapping[str, float] = field(default_factory=dict)
    """What the folds say of it under this head, in the place of what they say of the configuration."""
    score: Score | None
    """What it was chosen by."""
    alike: float | None = None
    """Of the consensus' choice: share of the others that agree with it as well, within the noise of its images."""


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """What all complete configurations of a search predict together, under all heads, for the target images."""

    voters: int
    """Configurations that voted."""
    labels_T: Tensor
    """The class with the most votes."""
    division: Division
    """The same images at any threshold between seen and unseen classes, by votes."""
    seen_C: Tensor
    """Bool: classes with labels."""
    mean_agreement: float
    """Mean agreement of its voters with it."""

    def score(self, votes: Votes) -> Mapping[Head, float]:
        """Return how far a configuration agrees with it, under each head."""
        return agreements(votes, self.labels_T, self.seen_C)


def find_consensus(votes: Sequence[Votes], seen_C: Tensor) -> Consensus | None:
    """Return the consensus of votes, None without any."""
    if not votes:
        return None
    labels_T = consensus(votes, len(seen_C))
    lead_T, seen_T, unseen_T = divided_consensus(votes, seen_C)
    values = [value for of_one in votes for value in agreements(of_one, labels_T, seen_C).values()]
    return Consensus(
        voters=len(votes),
        labels_T=labels_T,
        division=Division(lead_KI=lead_T[None], seen_KI=seen_T[None], unseen_KI=unseen_T[None]),
        seen_C=seen_C,
        mean_agreement=sum(values) / len(values),
    )


def choose(
    configurations: Sequence[Configuration], votes: Mapping[int, Votes], found: Consensus, top: int
) -> list[Choice]:
    """Return the configurations and heads that agree best with the consensus: its choice, then the others by agreement.

    The choice is among those that agree as well as the best, within the noise of the images: which of them is ahead
    says nothing. It is the one whose head agrees best in the mean over all configurations, which is less noisy than one
    configuration. `votes`: by the configurations' indices. Of equals, the earlier configuration and the simpler head
    come first.
    """
    agreed = [
        (
            agreement,
            Choice(
                configuration=c,
                head=head,
                of_head=votes[c.index].metrics.get(head, {}),
                score=Score(criterion="consensus", value=agreement),
            ),
        )
        for c in configurations
        if c.index in votes
        for head, agreement in found.score(votes[c.index]).items()
    ]
    ranked = sorted(agreed, key=lambda choice: -choice[0])
    if not ranked:
        return []
    of_head: dict[Head, list[float]] = {}
    for agreement, choice in ranked:
        of_head.setdefault(choice.head, []).append(agreement)
    alike = _alike(ranked, votes, found)
    chosen = max(alike, key=lambda choice: statistics.fmean(of_head[choice.head]))
    others = [choice for _, choice in ranked if choice is not chosen]
    return [replace(chosen, alike=(len(alike) - 1) / max(1, len(others))), *others][:top]


def _alike(ranked: Sequence[tuple[float, Choice]], votes: Mapping[int, Votes], found: Consensus) -> list[Choice]:
    """Return the first of the choices and those that are behind it by noise only (5 % level).

    `ranked`: their agreement and themselves, the best first.
    """

    def classes_FT(choice: Choice) -> Tensor:
        return torch.from_numpy(votes[choice.configuration.index].classes[choice.head].astype("int64"))

    (best, first), *others = ranked
    best_FT, alike = classes_FT(first), [first]
    for agreement, choice in others:
        noise = noise_of_difference(best_FT, classes_FT(choice), found.labels_T, found.seen_C)
        if best - agreement <= 1.96 * noise:
            alike.append(choice)
    return alike
