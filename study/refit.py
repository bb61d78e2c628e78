"""Winners are trained once more, on all seen classes and with several seeds, and classify the target.

All of them are one Ray Train run: starting one costs seconds, so packs (configurations x seeds that share their static
knobs) follow each other in it. Its workers share every batch (see `models.data_parallel`).
The refit sees no target labels either; what it returns are predicted classes, which only the driver compares.

Suffixes: K lanes, T target images.
"""

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from data_prep.storage import Storage
from models.data_parallel import workers as data_parallel_workers
from study.checkpoints import Checkpoints
from study.keeper import Keeper
from study.methods import static_fields
from study.protocol import TrialData
from study.selection import Criterion, seen_classes, trainable_images
from study.trainer import Division, LaneResult, Pack, on_worker, train_pack

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how often it looks whether workers are done; 2 by default
}
RETRIES = 3
"""A refit goes on from its checkpoints so many times when workers die."""


@dataclass(frozen=True, kw_only=True)
class Refit:
    """One configuration, refitted."""

    predictions_ST: Tensor
    """Predicted class of every target image, for every seed."""
    division: Division
    """The same images at any threshold between seen and unseen classes, a lane per seed."""
    train_seconds: float
    """Its share of the training time, all seeds."""
    weights: dict[str, Tensor]
    """The first seed's lane: all its tensors (1, ...) by name."""
    diverged: bool
    """Whether the loss of any seed was not finite."""
    unseen_GT: Tensor | None = None
    """Best unseen class of the first seed at each of `LAMBDAS`, int16; None where there is no residual to vary."""


def cpus_per_worker(workers: int, cpus_per_pack: float, gpus_per_pack: float) -> float:
    """CPUs of a refit's worker: a Ray Train run has the cluster to itself, plain tasks (0 workers) are like packs."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fit = [r["CPU"] for r in nodes if r.get("CPU", 0) >= 1 and r.get("GPU", 0) >= gpus_per_pack]
    if not workers or not fit:
        return cpus_per_pack
    on_a_node = math.ceil(workers / len(fit))
    return max(cpus_per_pack, min(fit) // on_a_node)


def refit(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    arrays: Any,
    epochs: int,
    cpus: float,
    gpus: float,
    workers: int,
    checkpoint_every: int,
    storage: Storage,
) -> list[Refit]:
    """Refit every configuration with every seed on the cluster.

    `arrays`: object reference to `TrialData.to_arrays()`. `cpus`, `gpus`: of each worker. `workers`: of the Ray Train
    run; 0 for plain Ray tasks without checkpoints, a pack each. `storage`: the study's; a refit that was interrupted
    goes on from the checkpoints it left there.
    """
    if workers == 0 or not configs:
        return _on_cluster(refit_pack, configs, arrays, cpus, gpus, seeds=seeds, epochs=epochs)
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # seconds to import
    from ray.train.torch import TorchTrainer

    packs = _packs(configs)
    shared = ray.get(arrays)
    identity = repr((configs, seeds, epochs, shared["fingerprint"], shared["seen_C"].tolist()))
    name = f"refit-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    # a hard rule: the storage may be this node's disk
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = Keeper.options(scheduling_strategy=here).remote(storage)  # type: ignore[attr-defined]
    own = tempfile.mkdtemp()  # Train's own state, which nobody reads
    try:
        with _quiet_train():
            result = TorchTrainer(
                _refit_worker,  # type: ignore[arg-type]  # its types know no return value, its documentation does
                train_loop_config={
                    "arrays": [arrays],  # in a list: the reference travels, not what it refers to
                    "packs": [[configs[i] for i in pack] for pack in packs],
                    "checkpoints": [
                        Checkpoints(keeper, f"{name}/{i}.safetensors", every=checkpoint_every)
                        for i in range(len(packs))
                    ],
                    "seeds": seeds,
                    "epochs": epochs,
                    "cpus": cpus,
                    "gpus": gpus,
                },
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                ),
                run_config=RunConfig(name=name, storage_path=own, failure_config=FailureConfig(max_failures=RETRIES)),
            ).fit()
    finally:
        ray.kill(keeper)
        shutil.rmtree(own, ignore_errors=True)
    storage.clear(name)
    return _in_order(packs, result.return_value)  # type: ignore[attr-defined]


def _refit_worker(job: Mapping[str, Any]) -> list[list[Refit]] | None:
    """What every worker of the Ray Train run does; the first one's result is the run's."""
    import ray.train
    from ray.train.torch import get_device

    if job["gpus"]:
        torch.cuda.set_device(get_device())
    data = on_worker(ray.get(job["arrays"][0]), cpus=job["cpus"], gpus=job["gpus"])
    done = []
    for configs, checkpoints in zip(job["packs"], job["checkpoints"], strict=True):
        done.append(refit_pack(configs, seeds=job["seeds"], data=data, epochs=job["epochs"], checkpoints=checkpoints))
        ray.train.report({"packs": len(done), "of": len(job["packs"]), "train_seconds": done[-1][0].train_seconds})
    return done if data_parallel_workers()[0] == 0 else None


@contextmanager
def _quiet_train() -> Iterator[None]:
    """Train logs its every step to the terminal."""
    os.environ.update(TRAIN_ENVIRONMENT)
    logger = logging.getLogger("ray.train")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    packs = _packs(configs)
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus)
    running = [task.remote(work, arrays, [configs[i] for i in pack], cpus, gpus, options) for pack in packs]
    return _in_order(packs, ray.get(running))


def _packs(configs: Sequence[Any]) -> list[list[int]]:
    """Indices of configurations by packs: those that share their static knobs."""
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault((type(config), *static_fields(config)), []).append(i)
    return list(packs.values())


def _in_order(packs: Sequence[Sequence[int]], results: Sequence[Sequence[Any]]) -> list[Any]:
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


def refit_pack(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    checkpoints: Checkpoints | None = None,
) -> list[Refit]:
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
    if checkpoints and (kept := checkpoints.load()):
        pack.restore(kept[0])
    while pack.epoch[0] < epochs:
        pack.train_epoch()
        if checkpoints:
            checkpoints.save(pack)
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
            weights={name: t[lanes_of][:1].detach().cpu().clone() for name, t in pack.module.lanes().items()},
            diverged=bool(pack.diverged_K[lanes_of].any()),
            unseen_GT=None if unseen_KGT is None else unseen_KGT[lanes_of.start],
        )
        for lanes_of in of_config
    ]
