"""Work on the cluster that is no search: scoring given configurations on the folds, comparing two precisions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch

from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData
from study.training.lane_result import LaneResult
from study.training.loop import bfloat16_keeps_ranking, train_pack
from study.training.methods import static_fields
from study.training.pack import Precision


def precision_on_worker(
    arrays: Mapping[str, Any], configs: list[Any], cpus: float, gpus: float, criterion: Criterion
) -> Precision:
    """bfloat16 if it ranks these configurations as float32 does."""
    data = on_worker(arrays, cpus=cpus, gpus=gpus)
    alike = bfloat16_keeps_ranking(configs, seeds=range(len(configs)), data=data, criterion=criterion)
    return "bfloat16" if alike else "float32"


def score_on_folds(
    configs: Sequence[Any], *, seed: int, arrays: Any, epochs: int, criterion: Criterion, cpus: float, gpus: float
) -> list[LaneResult]:
    """Score given configurations as the search would: for methods and variants that have nothing to search."""
    return on_cluster(_score_pack, configs, arrays, cpus, gpus, seed=seed, epochs=epochs, criterion=criterion)


def _score_pack(configs: Sequence[Any], *, seed: int, data: TrialData, **options: Any) -> list[LaneResult]:
    return train_pack(configs, seeds=[seed] * len(configs), data=data, **options)


def on_cluster(
    work: Callable[..., list[Any]], configs: Sequence[Any], arrays: Any, cpus: float, gpus: float, **options: Any
) -> list[Any]:
    """`work` on packs of configurations that share their static knobs, as Ray tasks; results in the order given."""
    packs = packs_of(configs)
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus)
    running = [task.remote(work, arrays, [configs[i] for i in pack], cpus, gpus, options) for pack in packs]
    return in_order(packs, ray.get(running))


def packs_of(configs: Sequence[Any]) -> list[list[int]]:
    """Indices of configurations by packs: those that share their static knobs."""
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault((type(config), *static_fields(config)), []).append(i)
    return list(packs.values())


def in_order(packs: Sequence[Sequence[int]], results: Sequence[Sequence[Any]]) -> list[Any]:
    """The packs' results in the order of their configurations."""
    of_index = {i: r for pack, done in zip(packs, results, strict=True) for i, r in zip(pack, done, strict=True)}
    return [of_index[i] for i in range(len(of_index))]


def _task(
    work: Callable[..., list[Any]],
    arrays: Mapping[str, Any],
    configs: Sequence[Any],
    cpus: float,
    gpus: float,
    options: Mapping[str, Any],
) -> list[Any]:
    return work(configs, data=on_worker(arrays, cpus=cpus, gpus=gpus), **options)


def on_worker(arrays: Mapping[str, Any], *, cpus: float, gpus: float) -> TrialData:
    """Trial data on the device of an actor or task with these resources; sets the process's threads to its CPUs."""
    # more threads than CPUs make two actors on two cores ten times slower than one thread each
    torch.set_num_threads(max(1, int(cpus)))
    return TrialData.from_arrays(arrays).to("cuda" if gpus and torch.cuda.is_available() else "cpu")
