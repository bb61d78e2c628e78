"""Heads: training-free methods on a trained method's features and prototypes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models import transductive
from models.heads import HEADS, Head, TransductiveVote, TransductiveVoteConfig, fitted_heads, voted
from models.prompts import ClassTexts
from models.sre_clip import ClassGraph, SREClip, SREConfig
from models.transductive import InMaP, InMaPConfig, TransCLIP, TransCLIPConfig, ZLaP, ZLaPConfig

SMALL = SREConfig(heads=2, slots=4, attention_width=8, gcn_width=8)
BASELINES = {
    "inmap": (InMaP, InMaPConfig()),
    "transclip": (TransCLIP, TransCLIPConfig()),
    "zlap": (ZLaP, ZLaPConfig()),
    "vote": (TransductiveVote, TransductiveVoteConfig()),
}


@pytest.fixture
def target(graph: ClassGraph) -> torch.Tensor:
    """Forty images around the class texts."""
    g = torch.Generator().manual_seed(1)
    texts = graph.name_features_CD[torch.arange(40) % 6]
    return F.normalize(texts + 0.3 * torch.randn(40, 8, generator=g), dim=-1)


def module(graph: ClassGraph, target: torch.Tensor, head: Head, lanes: int = 1) -> SREClip:
    seen_KC = torch.tensor([[True, True, True, True, False, False]]).expand(lanes, -1)
    config = replace(SMALL, head=head)
    return SREClip([config] * lanes, seeds=list(range(lanes)), seen_KC=seen_KC, graph=graph, target_features_TD=target)


def trained(sre: SREClip, target: torch.Tensor, steps: int = 5) -> SREClip:
    optimiser = torch.optim.SGD(sre.parameters(), lr=0.1)
    lanes = len(sre.rho)
    for _ in range(steps):
        labels = torch.arange(40).expand(lanes, -1) % 4
        losses = sre.losses(target.expand(lanes, -1, -1), labels, target.expand(lanes, -1, -1))
        optimiser.zero_grad()
        sre.total(losses).sum().backward()
        optimiser.step()
    return sre


@pytest.mark.parametrize("head", BASELINES)
def test_on_an_untrained_adapter_a_head_is_the_baseline(head: Head, graph: ClassGraph, target: torch.Tensor) -> None:
    baseline, config = BASELINES[head]
    texts = ClassTexts(features_CD=graph.name_features_CD, logit_scale=graph.logit_scale)
    expected = baseline([config], texts=texts, target_features_TD=target).logits(target)
    found = module(graph, target, head).logits(target)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()
    assert not torch.allclose(found, module(graph, target, "none").logits(target))


def test_heads_find_the_nearest_images_once(
    graph: ClassGraph, target: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(queries_QD: torch.Tensor, keys_ND: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(keys_ND))
        return nearest(queries_QD, keys_ND, count)

    nearest = transductive.nearest
    monkeypatch.setattr(transductive, "nearest", counted)
    for head in fitted_heads(target, graph.name_features_CD, graph.logit_scale).values():
        head.target_logits()
    assert sorted(asked) == [6, 40]  # ZLaP's nearest texts, and the nearest images
    asked.clear()
    module(graph, target, "vote").logits(target)  # no more for images that are the target's
    assert sorted(asked) == [6, 40]


@pytest.mark.parametrize("head", HEADS[1:])
def test_a_head_follows_training_and_never_touches_it(head: Head, graph: ClassGraph, target: torch.Tensor) -> None:
    plain, headed = trained(module(graph, target, "none", 2), target), module(graph, target, head, 2)
    before = headed.logits(target)
    trained(headed, target)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, headed.get_parameter(name)), name
    after = headed.logits(target)
    assert not torch.allclose(before, after)
    assert headed.embed(target) is None  # one head is enough
    for lane, (features_TD, prototypes_CD) in enumerate(zip(*plain.embed(target), strict=True)):
        expected = fitted_heads(features_TD, prototypes_CD, graph.logit_scale)[head].target_logits()
        torch.testing.assert_close(after[lane], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS[1:])
def test_lanes_with_a_head_can_be_kept_joined_and_moved(head: Head, graph: ClassGraph, target: torch.Tensor) -> None:
    both = trained(module(graph, target, head, 2), target)
    expected, new = both.logits(target), F.normalize(target + 0.1, dim=-1)
    of_new = both.logits(new)
    moved = module(graph, target, head)
    both.keep(torch.tensor([1]))
    moved.set_lanes(both.lanes())
    for sre in (both, moved):
        torch.testing.assert_close(sre.logits(target), expected[1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sre.logits(new), of_new[1:], rtol=1e-4, atol=1e-4)
    both.join(moved)
    torch.testing.assert_close(both.logits(target), expected[[1, 1]], rtol=1e-4, atol=1e-4)


def test_a_head_needs_the_target(graph: ClassGraph) -> None:
    with pytest.raises(ValueError, match="target_features_TD must be given with head=zlap"):
        SREClip([replace(SMALL, head="zlap")], seeds=[0], seen_KC=torch.tensor([[True] * 4 + [False] * 2]), graph=graph)


def test_most_votes_win_and_probabilities_decide_between_equals() -> None:
    one, two, three = (torch.tensor([row]) for row in ([9.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.1, 0.0]))
    assert voted([one, two, three]).argmax(-1).tolist() == [1]
    assert voted([one, two]).argmax(-1).tolist() == [0]
    assert voted([one]) is one
