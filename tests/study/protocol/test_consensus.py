"""Votes, the consensus and agreement with it, by hand."""

import numpy as np
import pytest
import torch

from study.protocol import consensus as module
from study.protocol.consensus import agreements, consensus, divided_consensus, divided_ensemble, vote_weights
from study.protocol.votes import Votes

SEEN = torch.tensor([True, True, False, False])


def votes(*rows: list[int], head: str = "none") -> Votes:
    return Votes(classes={head: np.array(rows, dtype=np.int16)})  # type: ignore[dict-item]


def test_every_fold_and_head_has_a_vote() -> None:
    first, second = votes([0, 2, 1], [0, 2, 3]), votes([1, 3, 3], head="zlap")
    both = Votes(classes={**first.classes, **second.classes})
    assert consensus([first], 4).tolist() == [0, 2, 1]  # of 1 and 3, with a vote each, the smaller
    assert consensus([first, second], 4).tolist() == [0, 2, 3]
    assert consensus([both], 4).tolist() == [0, 2, 3]
    # the vote of the heads does not count again
    assert consensus([both, votes([1, 1, 1], [1, 1, 1], [1, 1, 1], head="vote")], 4).tolist() == [0, 2, 3]


def test_blocks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 4, (5, 11))
    whole = consensus([Votes(classes={"none": rows})], 4)
    monkeypatch.setattr(module, "BLOCK", 12)
    assert consensus([Votes(classes={"none": rows})], 4).tolist() == whole.tolist()


def test_a_divided_consensus_leads_by_its_votes() -> None:
    lead, seen, unseen = divided_consensus([votes([0, 2, 2], [0, 2, 1], [3, 2, 1])], SEEN)
    assert lead.tolist() == [1, -3, 1]
    assert seen.tolist() == [0, 0, 1] and unseen.tolist() == [3, 2, 2]


def test_of_equal_votes_of_an_ensemble_the_first_member_decides() -> None:
    #                      majority, two against two, all differ
    members = torch.tensor([[2, 0, 3], [1, 2, 1], [1, 2, 2], [1, 0, 0]])
    lead, seen, unseen = divided_ensemble(members, SEEN)
    assert torch.where(lead >= 0, seen, unseen).tolist() == [1, 0, 3]
    assert lead.tolist() == [1.9375, 0.1875, -0.25]
    for count in (1, 3, 20):
        weights = vote_weights(count)
        assert all(weights[i] > 1 + (weights[i + 1 :] - 1).sum() for i in range(count))
        assert (weights - 1).sum() < 1


def test_agreement_is_h_over_pseudo_classes() -> None:
    labels = torch.tensor([0, 0, 1, 2])  # S over classes 0 and 1, U over class 2; class 3 has no image
    of_one = Votes(classes={"none": np.array([[0, 1, 1, 2]]), "zlap": np.array([[0, 0, 1, 3]])})
    assert agreements(of_one, labels, SEEN) == pytest.approx({"none": 2 * 0.75 * 1 / 1.75, "zlap": 0.0})
