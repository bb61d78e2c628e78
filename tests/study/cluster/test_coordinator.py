"""The actor to which all packs of a study report."""

import subprocess
import sys
from typing import Any

import pytest
import ray

from study.cluster.coordinator import Coordinator, PackProgress
from study.search.halving import SuccessiveHalving


def test_the_coordinator_judges_packs_together_and_knows_their_progress(ray_cluster: None) -> None:
    coordinator: Any = Coordinator.remote({"toy": SuccessiveHalving(eta=2)})  # type: ignore[attr-defined]
    assert ray.get(coordinator.judge.remote("toy", 0, 1, {0: 0.4, 1: 0.8})) == [False, True]
    assert ray.get(coordinator.judge.remote("toy", 2, 1, {2: 0.5, 3: 0.9, 4: 0.1})) == [True, True, False]
    assert ray.get(coordinator.judge.remote("toy", 5, 1, {5: 0.95, 6: 0.97})) == [True, True]
    # trained again: those after it count no more than the first time
    assert ray.get(coordinator.judge.remote("toy", 2, 1, {2: 0.5, 3: 0.9, 4: 0.1})) == [True, True, False]
    ray.get(coordinator.report.remote("a", PackProgress(space="toy", lanes=4, alive=3, epoch=2)))
    ray.get(coordinator.report.remote("b", PackProgress(space="toy", lanes=4, alive=4, epoch=0)))
    ray.get(coordinator.leave.remote("b", "toy", 5))
    ray.get(coordinator.report.remote("c", PackProgress(space="toy", lanes=4, alive=4, epoch=0, node="gone")))
    assert ray.get(coordinator.packs.remote()) == {"a": PackProgress(space="toy", lanes=4, alive=3, epoch=2)}
    ray.kill(coordinator)


def test_a_pack_waits_for_those_before_it_that_are_in_training(ray_cluster: None) -> None:
    coordinator: Any = Coordinator.remote({"toy": SuccessiveHalving(eta=2), "b": SuccessiveHalving()})  # type: ignore[attr-defined]

    def judge(pack: int, epoch: int, score: float, **waits: bool) -> list[bool] | None:
        verdicts: list[bool] | None = ray.get(coordinator.judge.remote("toy", pack, epoch, {pack: score}, **waits))
        return verdicts

    for pack in range(4):
        ray.get(coordinator.begin.remote("toy", pack))
    ray.get(coordinator.begin.remote("b", 0))  # another search's packs do not matter
    assert judge(1, 1, 0.5) is None
    assert judge(0, 1, 0.9) == [True]  # nobody before it
    assert judge(1, 1, 0.5) == [False]  # the same pack, now that the one before it has come so far
    assert judge(3, 1, 0.95) is None
    ray.get(coordinator.leave.remote("of pack 2", "toy", 2))  # it died
    assert judge(3, 1, 0.95) == [True]
    assert judge(3, 2, 0.95) is None  # 0 and 1 have not come to the next rung
    ray.get(coordinator.leave.remote("of pack 1", "toy", 1))
    assert judge(0, 2, 0.8) == [True] and judge(3, 2, 0.95) == [True]
    ray.get([coordinator.begin.remote("toy", pack) for pack in (4, 5, 6)])
    assert judge(5, 1, 0.97) is None and judge(5, 1, 0.97, waits=False) == [True]
    assert judge(6, 1, 0.99) == [True]  # nobody waits any more for the one that one was tired of
    ray.kill(coordinator)


@pytest.mark.parametrize("module", ["coordinator", "checkpoint_store"])
def test_small_actors_start_without_torch(module: str) -> None:
    check = f"import sys, study.cluster.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
