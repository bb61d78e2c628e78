"""Winners are trained once more, on all seen classes and with several seeds, and classify the target.

The refit sees no target labels either; what it returns are predicted classes, which only the driver compares.

Suffixes: K lanes, T target images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from torch import Tensor

from study.methods import static_fields
from study.protocol import TrialData
from study.trainer import Criterion, Division, LaneResult, Pack, on_worker, seen_classes, train_pack, trainable_images


@dataclass(frozen=True, kw_only=True)
class Refit:
    """One configuration, refitted."""

    predictions_ST: Tensor
    """Predicted class of every target image, for every seed."""
    division: Division
    """The same images at any threshold between seen and unseen classes, a lane per seed."""
    train_seconds: float
    """Its share of the training time, all seeds."""
    diverged: bool
    """Whether the loss of any seed was not finite."""
    unseen_GT: Tensor | None = None
    """Best unseen class of the first seed at each of `LAMBDAS`, int16; None where there is no residual to vary."""


def refit(
    configs: Sequence[Any], *, seeds: Sequence[int], arrays: Any, epochs: int, cpus: float, gpus: float
) -> list[Refit]:
    """Refit every configuration with every seed on the cluster.

    `arrays`: object reference to `TrialData.to_arrays()`. `cpus`, `gpus`: of each of the tasks that share the work.
    """
    return _on_cluster(refit_pack, configs, arrays, cpus, gpus, seeds=seeds, epochs=epochs)


def score_on_folds(
    configs: Sequence[Any], *, seed: int, arrays: Any, epochs: int, criterion: Criterion, cpus: float, gpus: float
) -> list[LaneResult]:
    """Score given configurations as the search would: for methods and variants that have nothing to search."""
    return _on_cluster(_score_pack, configs, arrays, cpus, gpus, seed=seed, epochs=epochs, criterion=criterion)


def _score_pack(configs: Sequence[Any], *, seed: int, data: TrialData, **options: Any) -> list[LaneResult]:
    return train_pack(configs, seeds=[seed] * len(configs), data=data, **options)


def _on_cluster(
    work: Callable[..., list[Any]], configs: Sequence[Any], arrays: Any, cpus: float, gpus: float, **options: Any
) -> list[Any]:
    """`work` on packs of configurations that share their static knobs, as Ray tasks; results in the order given."""
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault((type(config), *static_fields(config)), []).append(i)
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus)
    running = [task.remote(work, arrays, [configs[i] for i in pack], cpus, gpus, options) for pack in packs.values()]
    results: dict[int, Any] = {}
    for pack, done in zip(packs.values(), ray.get(running), strict=True):
        results.update(zip(pack, done, strict=True))
    return [results[i] for i in range(len(configs))]


def _task(
    work: Callable[..., list[Any]],
    arrays: Mapping[str, Any],
    configs: Sequence[Any],
    cpus: float,
    gpus: float,
    options: Mapping[str, Any],
) -> list[Any]:
    return work(configs, data=on_worker(arrays, cpus=cpus, gpus=gpus), **options)


def refit_pack(configs: Sequence[Any], *, seeds: Sequence[int], data: TrialData, epochs: int) -> list[Refit]:
    """Refit configurations that share their static knobs, here and now: configurations x seeds are the lanes."""
    started = time.perf_counter()
    lanes = [(config, seed) for config in configs for seed in seeds]
    pack = Pack(
        [config for config, _ in lanes],
        seeds=[seed for _, seed in lanes],
        seen_KC=seen_classes(data, None).expand(len(lanes), -1),
        trainable_KI=trainable_images(data, None).expand(len(lanes), -1),
        data=data,
        epochs=epochs,
    )
    for _ in range(epochs):
        pack.train_epoch()
    target_1C = None if data.target_C is None else data.target_C[None]
    predictions_KT = pack.classify(data.target_features_TD, target_1C).cpu()
    division = pack.divide(data.target_features_TD)
    seconds = (time.perf_counter() - started) / len(configs)
    unseen_KGT = pack.unseen_by_lambda(data.target_features_TD)
    of_config = [slice(i * len(seeds), (i + 1) * len(seeds)) for i in range(len(configs))]
    return [
        Refit(
            predictions_ST=predictions_KT[lanes_of],
            division=Division(
                lead_KI=division.lead_KI[lanes_of],
                seen_KI=division.seen_KI[lanes_of],
                unseen_KI=division.unseen_KI[lanes_of],
            ),
            train_seconds=seconds,
            diverged=bool(pack.diverged_K[lanes_of].any()),
            unseen_GT=None if unseen_KGT is None else unseen_KGT[lanes_of.start],
        )
        for lanes_of in of_config
    ]
