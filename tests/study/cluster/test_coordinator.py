"""Successive halving, and the actor that applies it to all packs of a study."""

import subprocess
import sys
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from study.cluster.coordinator import Coordinator, PackProgress
from study.search.halving import SuccessiveHalving, rung_epochs


@pytest.mark.parametrize(("epochs", "expected"), [(20, [5, 10]), (8, [2, 4]), (3, [1]), (1, [])])
def test_rungs(epochs: int, expected: list[int]) -> None:
    assert rung_epochs(epochs) == expected


def test_the_best_half_of_all_lanes_so_far_goes_on() -> None:
    halving = SuccessiveHalving(eta=2)
    assert halving.judge(5, [0.1, 0.4, 0.3, 0.2]) == [False, True, True, False]
    assert halving.judge(5, [0.25, 0.35]) == [False, True]  # best three of six: .4 .35 .3
    assert halving.judge(10, [0.0]) == [True]  # another rung, nobody else there yet


def test_recorded_scores_count_as_if_they_had_been_judged() -> None:
    resumed = SuccessiveHalving(eta=2)
    resumed.record(5, [0.1, 0.4, 0.3, 0.2])
    assert resumed.judge(5, [0.25, 0.35]) == [False, True]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.sampled_from([2, 3, 4]))
def test_at_least_the_best_share_goes_on_and_no_worse_lane_before_a_better(scores: list[int], eta: int) -> None:
    verdicts = SuccessiveHalving(eta=eta).judge(1, [float(s) for s in scores])
    assert sum(verdicts) >= -(-len(scores) // eta)
    assert min(s for s, v in zip(scores, verdicts, strict=True) if v) >= max(
        (s for s, v in zip(scores, verdicts, strict=True) if not v), default=-1
    )


def test_the_coordinator_judges_packs_together_and_knows_their_progress(ray_cluster: None) -> None:
    coordinator: Any = Coordinator.remote({"toy": SuccessiveHalving(eta=2)})  # type: ignore[attr-defined]
    assert ray.get(coordinator.judge.remote("toy", 1, {0: 0.4, 1: 0.8})) == [False, True]
    assert ray.get(coordinator.judge.remote("toy", 1, {2: 0.5, 3: 0.9, 4: 0.1})) == [True, True, False]
    # trained again
    assert ray.get(coordinator.judge.remote("toy", 1, {2: 0.5, 3: 0.9, 4: 0.1})) == [True, True, False]
    assert ray.get(coordinator.judge.remote("toy", 1, {5: 0.95, 6: 0.97, 2: 0.5})) == [
        True,
        True,
        True,
    ]  # its old verdict
    assert ray.get(coordinator.judge.remote("toy", 1, {2: 0.6, 3: 0.9})) == [False, True]  # another score: judged anew
    ray.get(coordinator.report.remote("a", PackProgress(space="toy", lanes=4, alive=3, epoch=2)))
    ray.get(coordinator.report.remote("b", PackProgress(space="toy", lanes=4, alive=4, epoch=0)))
    ray.get(coordinator.report.remote("b", None))
    assert ray.get(coordinator.packs.remote()) == {"a": PackProgress(space="toy", lanes=4, alive=3, epoch=2)}
    ray.kill(coordinator)


@pytest.mark.parametrize("module", ["coordinator", "checkpoint_store"])
def test_small_actors_start_without_torch(module: str) -> None:
    check = f"import sys, study.cluster.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_search_needs_neither_ray_nor_torch() -> None:
    check = "import sys, study.search.pack_queue; assert not {'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
