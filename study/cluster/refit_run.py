"""Winners are trained once more, on all seen classes and with several seeds, and classify the target.

All of them are one Ray Train run: starting one costs seconds, so packs (configurations x seeds that share their static
knobs) follow each other in it. Its workers share every batch (see `models.data_parallel`).
The refit sees no target labels either; what it returns are predicted classes, which only the driver compares.

Suffixes: K lanes, T target images.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_prep.storage import Storage
from models.data_parallel import workers as data_parallel_workers
from study.cluster.checkpoint_store import Keeper
from study.cluster.tasks import in_order, on_cluster, on_worker, packs_of
from study.training.pack_checkpoint import Checkpoints
from study.training.refit import Refit, refit_pack

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how often it looks whether workers are done; 2 by default
}


RETRIES = 3
"""A refit goes on from its checkpoints so many times when workers die."""


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
        return on_cluster(refit_pack, configs, arrays, cpus, gpus, seeds=seeds, epochs=epochs)
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # seconds to import
    from ray.train.torch import TorchTrainer

    packs = packs_of(configs)
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
    return in_order(packs, result.return_value)  # type: ignore[attr-defined]


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
