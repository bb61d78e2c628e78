"""Work on the cluster that is no search: scoring given configurations on the folds, comparing two precisions."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import ray
import torch

from models.stacked import MethodConfig
from search_spaces import Space
from study.options import ResourceOptions
from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData
from study.training.loop import TrainingOptions, bfloat16_keeps_ranking, train_pack
from study.training.methods import static_fields
from study.training.scoring import LaneResult

R = TypeVar("R", covariant=True)


class PackWork(Protocol[R]):
    """Work on configurations that share their static knobs; one result for each."""

    def __call__(self, configs: Sequence[MethodConfig], *, data: TrialData) -> Sequence[R]:
        """Do the work here and now."""


def data_on_worker(arrays: Mapping[str, Any], cpus: float, gpus: float) -> TrialData:
    """Return trial data on the device of an actor or task with these resources; set its threads to its CPUs."""
    # more threads than CPUs make two actors on two cores ten times slower than one thread each
    torch.set_num_threads(max(1, int(cpus)))
    return TrialData.from_arrays(arrays).to("cuda" if gpus and torch.cuda.is_available() else "cpu")


def score_on_folds(
    configs: Sequence[MethodConfig],
    *,
    seed: int,
    arrays: ray.ObjectRef,
    training: TrainingOptions,
    resources: ResourceOptions,
) -> list[LaneResult]:
    """Score given configurations as a search would: for methods and variants that have nothing to search.

    None is pruned, and all train in float32. `arrays`: reference to `TrialData.to_arrays()`.
    """
    options = replace(training, rungs=(), precision="float32")
    return map_packs(functools.partial(_score_pack, seed=seed, options=options), configs, arrays, resources)


def _score_pack(
    configs: Sequence[MethodConfig], *, data: TrialData, seed: int, options: TrainingOptions
) -> list[LaneResult]:
    return train_pack(configs, seeds=[seed] * len(configs), data=data, options=options)


def choose_precision(
    space: Space, training: TrainingOptions, resources: ResourceOptions, arrays: ray.ObjectRef
) -> TrainingOptions:
    """Return `training` in the precision of `resources`; auto is decided once per search, so that the seed decides it.

    `arrays`: reference to `TrialData.to_arrays()`.
    """
    if resources.precision != "auto":
        return replace(training, precision=resources.precision)
    # on CPUs float32: with AVX512-bf16 a step of SRE-CLIP took 8.7 ms per lane either way (casts eat the gain),
    # one of PVA 10.3 instead of 15.0, and then a lane depends on its pack
    if not resources.gpus_per_pack:
        return replace(training, precision="float32")
    lr = float(space.config().lr)
    configs = [space.config(**space.defaults() | {"lr": lr * 2 ** (i / 2 - 2)}) for i in range(8)]
    task = ray.remote(_bfloat16_keeps_ranking).options(
        num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus_per_pack
    )
    alike = ray.get(task.remote(arrays, configs, resources, training.criterion))
    return replace(training, precision="bfloat16" if alike else "float32")


def _bfloat16_keeps_ranking(
    arrays: Mapping[str, Any], configs: Sequence[MethodConfig], resources: ResourceOptions, criterion: Criterion
) -> bool:
    data = data_on_worker(arrays, resources.cpus_per_pack, resources.gpus_per_pack)
    return bfloat16_keeps_ranking(configs, seeds=range(len(configs)), data=data, criterion=criterion)


def map_packs(
    work: PackWork[R], configs: Sequence[MethodConfig], arrays: ray.ObjectRef, resources: ResourceOptions
) -> list[R]:
    """Do `work` on packs of configurations that share their static knobs, a Ray task each; results in the order given.

    `arrays`: reference to `TrialData.to_arrays()`.
    """
    packs = packs_of(configs)
    task: Any = ray.remote(_task).options(num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus_per_pack)
    running = [task.remote(work, arrays, [configs[i] for i in pack], resources) for pack in packs]
    try:
        return in_order(packs, ray.get(running))
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _task(
    work: PackWork[R], arrays: Mapping[str, Any], configs: Sequence[MethodConfig], resources: ResourceOptions
) -> Sequence[R]:
    return work(configs, data=data_on_worker(arrays, resources.cpus_per_pack, resources.gpus_per_pack))


def packs_of(configs: Sequence[MethodConfig]) -> list[list[int]]:
    """Return the indices of configurations by packs: those that share their static knobs."""
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault((type(config), *static_fields(config)), []).append(i)
    return list(packs.values())


def in_order(packs: Sequence[Sequence[int]], results: Sequence[Sequence[R]]) -> list[R]:
    """Return the packs' results in the order of their configurations."""
    of_index = {i: r for pack, done in zip(packs, results, strict=True) for i, r in zip(pack, done, strict=True)}
    return [of_index[i] for i in range(len(of_index))]
