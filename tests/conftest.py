"""Fixtures shared by all tests: one local Ray cluster per session, one prepared cache of the embedded benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from study.cluster.jobs import Search, SearchOutcome

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, started once: starting it costs seconds."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def embedded_cache(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded benchmark's features, built by the real Ray Data job: it costs seconds, so all tests share it."""
    from data_prep import FeatureOptions, prepare

    return prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=tmp_path_factory.mktemp("embedded")))


def search_here(searches: "Sequence[Search]", arrays: Any, **_: Any) -> "list[SearchOutcome]":
    """Search in this process, one pack after the other, as one actor would: starting Tune and its actors takes ten
    seconds, longer than the packs of these tests.
    """
    import ray

    from study.cluster.jobs import SearchOutcome
    from study.protocol.trial_data import TrialData
    from study.search.records import PackReport
    from study.training.loop import train_pack

    data = TrialData.from_arrays(ray.get(arrays))
    outcomes = []
    for search in searches:
        queue = search.queue
        while lanes := queue.next_pack("pack"):
            results = train_pack(
                [queue.space.config(**lane.params) for lane in lanes],
                seeds=[lane.seed for lane in lanes],
                data=data,
                options=search.training,
                judge=lambda epoch, scores: search.halving.judge(epoch, [score for _, score in scores]),  # noqa: B023
            )
            queue.end("pack", PackReport(ended={x.number: r for x, r in zip(lanes, results, strict=True)}))
        outcomes.append(
            SearchOutcome(
                interrupted=False, counts=queue.counts, seconds=1.0, concurrent=1, trained=queue.counts.finished
            )
        )
    return outcomes


@pytest.fixture
def without_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of this test run in its process: for tests of what is around a search."""
    monkeypatch.setattr("study.pipeline.search_stage.run_searches", search_here)
