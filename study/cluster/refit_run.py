"""Winners are trained once more, on all seen classes and with several seeds, and classify the target.

All of them are one Ray Train run: starting one costs seconds, so packs (configurations x seeds that share their static
knobs) follow each other in it. Its workers share every batch (see `models.data_parallel`).
The refit sees no target labels either; it returns predicted classes, which only the driver compares.

Suffixes: K lanes, T target images.
"""

import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from data_prep.ray_session import quiet_loggers
from data_prep.storage import Storage
from models.data_parallel import workers as data_parallel_workers
from models.stacked import MethodConfig
from study.cluster.checkpoint_store import start_checkpoint_store
from study.cluster.session import cpus_per_worker
from study.cluster.tasks import data_on_worker, in_order, map_packs, packs_of
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData
from study.training.pack_checkpoint import PackCheckpoint
from study.training.refit import Refit, refit_pack

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how often it looks whether workers are done; 2 by default
}

RETRIES = 3
"""Times that a refit goes on from its checkpoints when workers die."""


@dataclass(frozen=True, kw_only=True)
class _RefitJob:
    """What every worker of the Ray Train run does."""

    arrays: ray.ObjectRef
    """Reference to `TrialData.to_arrays()`."""
    packs: list[list[MethodConfig]]
    """Configurations that share their static knobs, pack by pack."""
    checkpoints: list[PackCheckpoint]
    """Of each pack."""
    seeds: Sequence[int]
    """Seeds of every configuration."""
    epochs: int
    """Epochs of every configuration."""
    cpus: float
    """CPUs of a worker."""
    gpus: float
    """GPUs of a worker."""
    new_features: ray.ObjectRef | None
    """Reference to features of images that the study never saw."""


def refit(
    configs: Sequence[MethodConfig],
    *,
    seeds: Sequence[int],
    arrays: ray.ObjectRef,
    epochs: int,
    resources: ResourceOptions,
    storage: Storage,
    new_features: ray.ObjectRef | None = None,
) -> list[Refit]:
    """Refit every configuration with every seed on the cluster.

    `arrays`: reference to `TrialData.to_arrays()`; `new_features`: to those of images that the study never saw, float32
    (I, D), which the refits classify. With 0 refit workers: plain Ray tasks without checkpoints, a pack
    each. `storage`: the study's; a refit that was interrupted goes on from the checkpoints it left there.
    """
    if resources.workers_of_refits == 0 or not configs:
        work = functools.partial(_refit_task, seeds=seeds, epochs=epochs, new_features=new_features)
        return map_packs(work, configs, arrays, resources)
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # seconds to import
    from ray.train.torch import TorchTrainer

    packs = packs_of(configs)
    shared = ray.get(arrays)
    identity = repr((configs, seeds, epochs, shared["fingerprint"], shared["seen_C"].tolist()))
    name = f"refit-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    store = start_checkpoint_store(storage)
    cpus, gpus, every = cpus_per_worker(resources), resources.gpus, resources.checkpoint_every
    job = _RefitJob(
        arrays=arrays,
        packs=[[configs[i] for i in pack] for pack in packs],
        checkpoints=[PackCheckpoint(store, f"{name}/{i}.safetensors", every=every) for i in range(len(packs))],
        seeds=seeds,
        epochs=epochs,
        cpus=cpus,
        gpus=gpus,
        new_features=new_features,
    )
    own = tempfile.mkdtemp()  # Train's own state, which nobody reads
    controllers: list[ActorHandle] = []
    os.environ.update(TRAIN_ENVIRONMENT)
    try:
        with quiet_loggers("ray.train", level=logging.CRITICAL):  # Train logs its every step to the terminal
            trainer = TorchTrainer(
                _refit_worker,  # type: ignore[arg-type]  # its types know no return value, its documentation does
                train_loop_config={"job": job},
                scaling_config=ScalingConfig(
                    num_workers=resources.workers_of_refits,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                ),
                run_config=RunConfig(name=name, storage_path=own, failure_config=FailureConfig(max_failures=RETRIES)),
            )
            # Train's own handler of SIGINT would exit with code 1, and stay when the run is over
            trainer._register_sigint_handler = controllers.append  # type: ignore[attr-defined]
            result = trainer.fit()
    except KeyboardInterrupt:
        for controller in controllers:
            ray.kill(controller)  # and with it its workers
        raise
    finally:
        store.close()
        shutil.rmtree(own, ignore_errors=True)
    storage.clear(name)
    return in_order(packs, result.return_value)  # type: ignore[attr-defined]


def _refit_task(
    configs: Sequence[MethodConfig],
    *,
    data: TrialData,
    seeds: Sequence[int],
    epochs: int,
    new_features: ray.ObjectRef | None,
) -> list[Refit]:
    return refit_pack(configs, seeds=seeds, data=data, epochs=epochs, new_features_ID=_tensor(new_features))


def _tensor(features: ray.ObjectRef | None) -> torch.Tensor | None:
    """Return the features behind a reference."""
    return None if features is None else torch.from_numpy(ray.get(features))


def _refit_worker(config: dict[str, Any]) -> list[list[Refit]] | None:
    """Refit all packs on a worker of the Ray Train run; the first worker's results are the run's."""
    import ray.train
    from ray.train.torch import get_device

    job: _RefitJob = config["job"]
    if job.gpus:
        torch.cuda.set_device(get_device())
    data = data_on_worker(ray.get(job.arrays), job.cpus, job.gpus)
    new, done = _tensor(job.new_features), []
    for configs, checkpoint in zip(job.packs, job.checkpoints, strict=True):
        refits = refit_pack(
            configs, seeds=job.seeds, data=data, epochs=job.epochs, checkpoint=checkpoint, new_features_ID=new
        )
        done.append(refits)
        ray.train.report({"packs": len(done), "of": len(job.packs), "train_seconds": done[-1][0].train_seconds})
    return done if data_parallel_workers()[0] == 0 else None
