"""The choice at the end of a search, by hand."""

import numpy as np
import torch

from study.pipeline.choice import choose, find_consensus
from study.protocol.votes import Votes
from study.search.records import Configuration

SEEN = torch.tensor([True, True, False, False])


def configuration(index: int) -> Configuration:
    return Configuration(
        index=index,
        number=index,
        config_id=f"sre-{index:04d}",
        params={},
        seed=0,
        state="complete",
        score=0.1 * index,
        metrics={},
        curve=[],
        epochs=1,
        train_seconds=0.0,
        reason="",
        pareto=False,
    )


def test_the_configuration_and_head_that_agree_best_are_chosen_not_those_that_the_search_ranked_first() -> None:
    with_most, alone = np.array([[0, 1, 2, 3]]), np.array([[1, 1, 3, 3]])
    votes = {
        0: Votes(classes={"none": with_most, "zlap": alone}),
        1: Votes(classes={"none": with_most}),
        2: Votes(classes={"none": alone, "inmap": with_most}),
    }
    found = find_consensus(list(votes.values()), SEEN)
    assert found is not None and found.labels_T.tolist() == [0, 1, 2, 3] and found.voters == 3
    chosen = choose([configuration(i) for i in (0, 1, 2, 3)], votes, found, top=4)  # 3 has no votes: an older file
    # of equals the earlier configuration; 0.5 is H of S = 1/2 and U = 1/2
    assert [(c.configuration.index, c.head, c.score) for c in chosen] == [
        (0, "none", 1.0),
        (1, "none", 1.0),
        (2, "inmap", 1.0),
        (0, "zlap", 0.5),
    ]


def test_without_votes_there_is_no_consensus() -> None:
    assert find_consensus([], SEEN) is None
