"""A real study of seconds on the embedded benchmark, through the command line; and searches without Tune."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from models.stacked import MethodConfig
from study.cluster.jobs import Search, SearchOutcome
from study.cluster.tasks import PackWork, in_order, packs_of
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData
from study.run import main
from study.search.records import PackReport
from study.training.loop import train_pack
from study.training.refit import Refit, refit_pack

SMALL = (
    "--configs 4 --pack 2 --epochs 2 --folds 2 --seeds 2 --top 1 --seed 3 --cpus-per-pack 2 --refit-workers 0 "
    "--baselines none".split()
)


def run(storage: Path, cache: Path, *arguments: str) -> int:
    return main([*SMALL, "--storage", str(storage), "--cache", str(cache.parent), *arguments])


def refit_here(
    configs: Sequence[MethodConfig],
    *,
    arrays: Any,
    seeds: Sequence[int],
    epochs: int,
    new_features: Any = None,
    **_: Any,
) -> list[Refit]:
    """Refit in this process: a worker of Ray imports torch first."""
    new = None if new_features is None else torch.from_numpy(ray.get(new_features))
    work = functools.partial(refit_pack, seeds=seeds, epochs=epochs, new_features_ID=new)
    return map_packs_here(work, configs, arrays)


def map_packs_here(
    work: PackWork[Any], configs: Sequence[MethodConfig], arrays: Any, resources: ResourceOptions | None = None
) -> list[Any]:
    """Work on configurations in this process, a pack after the other."""
    data, packs = TrialData.from_arrays(ray.get(arrays)), packs_of(configs)
    return in_order(packs, [work([configs[i] for i in pack], data=data) for pack in packs])


def search_here(searches: Sequence[Search], arrays: Any, **_: Any) -> list[SearchOutcome]:
    """Search in this process, one pack after the other, as one actor would: starting Tune and its actors takes ten
    seconds, longer than the packs of these tests.
    """
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
                judge=lambda epoch, scores: search.halving.judge(epoch, {lanes[i].index: s for i, s in scores}),  # noqa: B023
            )
            queue.end("pack", PackReport(ended={x.number: r for x, r in zip(lanes, results, strict=True)}))
        outcomes.append(
            SearchOutcome(
                interrupted=False, counts=queue.counts, seconds=1.0, concurrent=1, trained=queue.counts.finished
            )
        )
    return outcomes
