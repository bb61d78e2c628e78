"""The choice at the end of a search, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rows import ROWS

from study.evaluation.leaderboard import rank_rows, score_columns
from study.pipeline.choice import choose, find_consensus
from study.protocol.consensus import agreement, noise_of_difference
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
    # inmap agrees better in the mean of those that have it; of other equals the earlier configuration is first;
    # 0.5 is H of S = 1/2 and U = 1/2
    assert [(c.configuration.index, c.head, c.score and c.score.value) for c in chosen] == [
        (2, "inmap", 1.0),
        (0, "none", 1.0),
        (1, "none", 1.0),
        (0, "zlap", 0.5),
    ]


def test_without_votes_there_is_no_consensus() -> None:
    assert find_consensus([], SEEN) is None


def test_choices_that_differ_by_noise_are_counted() -> None:
    """One image in four hundred is noise; half of them are not. Literal: of two other choices one is alike."""
    labels = np.arange(400) % 4
    close, far = labels.copy(), labels.copy()
    close[0], far[::2] = 3, (far[::2] + 1) % 4
    votes = {0: Votes(classes={"none": labels[None]}), 1: Votes(classes={"none": close[None]})}
    votes |= {2: Votes(classes={"none": far[None]})}
    found = find_consensus(list(votes.values()), SEEN)
    assert found is not None and found.labels_T.tolist() == labels.tolist()
    chosen = choose([configuration(i) for i in range(3)], votes, found, top=2)
    assert [(c.configuration.index, c.alike) for c in chosen] == [(0, 0.5), (1, None)]


def test_among_choices_that_differ_by_noise_the_head_decides_that_agrees_in_the_mean() -> None:
    """One image in four hundred puts zlap ahead of inmap; in the mean of three configurations inmap is."""
    labels = np.arange(400) % 4
    close, far = [labels.copy() for _ in range(3)], labels.copy()
    far[::2] = (far[::2] + 1) % 4
    for i, of_one in enumerate(close):
        of_one[4 * i] = 3
    votes = {
        i: Votes(classes={"zlap": zlap[None], "inmap": inmap[None]})
        for i, (zlap, inmap) in enumerate(zip((labels, far, far), close, strict=True))
    }
    found = find_consensus(list(votes.values()), SEEN)
    assert found is not None and found.labels_T.tolist() == labels.tolist()
    chosen = choose([configuration(i) for i in range(3)], votes, found, top=3)
    assert [(c.configuration.index, c.head, c.alike) for c in chosen] == [
        (0, "inmap", 0.6),
        (0, "zlap", None),
        (1, "inmap", None),
    ]
    scores = [c.score.value for c in chosen if c.score]
    assert scores[1] > scores[0]
    rows = rank_rows(
        [
            replace(ROWS[2], config_id=f"{c.head}-{c.configuration.index}", val_alike=c.alike, **score_columns(c.score))
            for c in reversed(chosen)
        ]
    )
    assert [row.config_id for row in rows if row.selected] == ["inmap-0"]


def test_the_noise_of_a_difference_is_that_of_resampled_images() -> None:
    g = torch.Generator().manual_seed(0)
    labels_T = torch.arange(600) % 4
    best_FT, other_FT = (
        torch.where(torch.rand(2, 600, generator=g) < right, labels_T, (labels_T + 1) % 4) for right in (0.8, 0.7)
    )
    drawn = []
    for _ in range(400):
        rows = torch.cat([torch.arange(600)[labels_T == c][torch.randint(150, (150,), generator=g)] for c in range(4)])
        h = [agreement(p[:, rows], labels_T[rows], SEEN).mean() for p in (best_FT, other_FT)]
        drawn.append(float(h[0] - h[1]))
    found = noise_of_difference(best_FT, other_FT, labels_T, SEEN)
    assert found == pytest.approx(float(np.std(drawn)), rel=0.15)
