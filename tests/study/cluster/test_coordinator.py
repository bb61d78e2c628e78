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
    ray.get(coordinator.report.remote("c", PackProgress(space="toy", lanes=4, alive=4, epoch=0, node="gone")))
    assert ray.get(coordinator.packs.remote()) == {"a": PackProgress(space="toy", lanes=4, alive=3, epoch=2)}
    ray.kill(coordinator)


@pytest.mark.parametrize("module", ["coordinator", "checkpoint_store"])
def test_small_actors_start_without_torch(module: str) -> None:
    check = f"import sys, study.cluster.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
