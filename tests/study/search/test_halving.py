"""Successive halving: which lanes go on."""

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.search.halving import SuccessiveHalving, rung_epochs


@pytest.mark.parametrize(("epochs", "expected"), [(20, [5, 10]), (8, [2, 4]), (3, [1]), (1, [])])
def test_rungs(epochs: int, expected: list[int]) -> None:
    assert rung_epochs(epochs) == expected


def test_the_best_half_of_a_pack_and_those_before_it_goes_on() -> None:
    halving = SuccessiveHalving(eta=2)
    assert halving.judge(5, {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}) == [False, True, True, False]
    assert halving.judge(5, {4: 0.25, 5: 0.35}) == [False, True]  # best three of six: .4 .35 .3
    assert halving.judge(10, {5: 0.0}) == [True]  # another rung, nobody else there yet


def test_recorded_scores_count_as_if_they_had_been_judged() -> None:
    resumed = SuccessiveHalving(eta=2)
    resumed.record(5, {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2})
    assert resumed.judge(5, {4: 0.25, 5: 0.35}) == [False, True]


def test_configurations_drawn_later_do_not_count_though_they_were_quicker() -> None:
    halving = SuccessiveHalving(eta=2)
    halving.record(5, {2: 0.9, 3: 0.8})
    assert halving.judge(5, {0: 0.1, 1: 0.2}) == [False, True]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.sampled_from([2, 3, 4]))
def test_at_least_the_best_share_goes_on_and_no_worse_lane_before_a_better(scores: list[int], eta: int) -> None:
    verdicts = SuccessiveHalving(eta=eta).judge(1, {i: float(s) for i, s in enumerate(scores)})
    assert sum(verdicts) >= -(-len(scores) // eta)
    assert min(s for s, v in zip(scores, verdicts, strict=True) if v) >= max(
        (s for s, v in zip(scores, verdicts, strict=True) if not v), default=-1
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_verdicts_depend_on_no_order_of_arrival(scores: list[int], random: Random) -> None:
    in_order, shuffled = SuccessiveHalving(), SuccessiveHalving()
    expected = [in_order.judge(1, {i: float(score)}) for i, score in enumerate(scores)]
    arrivals = list(enumerate(map(float, scores)))
    random.shuffle(arrivals)
    for i, score in arrivals:
        shuffled.record(1, {i: score})
    assert [shuffled.judge(1, {i: float(score)}) for i, score in enumerate(scores)] == expected


def test_a_configuration_that_is_trained_again_has_one_score() -> None:
    halving = SuccessiveHalving(eta=2)
    halving.judge(5, {0: 0.1, 1: 0.4})
    assert halving.judge(5, {1: 0.05}) == [False] and halving.scores == {5: {0: 0.1, 1: 0.05}}


def test_a_search_needs_neither_ray_nor_torch() -> None:
    check = "import sys, study.search.pack_queue; assert not {'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
