"""Run searches: Tune schedules packs on the cluster, queues fill them and write the ledgers, a monitor looks on."""

import gc
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial
from rich.console import Console

from data_prep.interrupts import from_interrupt
from data_prep.ray_session import own_ray, quiet_loggers
from data_prep.storage import Storage
from study.cluster.capacity import Room, of_worker
from study.cluster.checkpoint_store import start_checkpoint_store
from study.cluster.coordinator import Coordinator
from study.cluster.jobs import PackJob, Search, SearchOutcome
from study.cluster.monitor import Observer, make_monitor
from study.cluster.pack_actor import PackTrainable
from study.cluster.session import concurrent_packs, on_this_node
from study.cluster.tune_searcher import TuneSearcher
from study.options import ResourceOptions

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and tensorboard file per pack: the ledger has it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in actors
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # its own state, which grows with every pack and nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for its trials: a minute and more until the ledger is told
}

MOST_TRIALS = 10_000
"""Packs that Tune may run or let wait at once."""

PACKS = "packs"
"""Folder of the packs' checkpoints, while a search is not over."""


def run_searches(
    searches: Sequence[Search],
    arrays: Mapping[str, Any] | ray.ObjectRef,
    *,
    resources: ResourceOptions,
    requested: int = 1,
    in_order: bool = True,
    checkpoints: Storage | None = None,
    console: Console | None = None,
    report: Callable[[], object] | None = None,
    observers: Sequence[Observer] = (),
) -> list[SearchOutcome]:
    """Train packs until each search has its configurations finished, on the Ray that is initialised.

    One Tune run whose actors serve all of them: starting an actor costs seconds, as much as a pack of a simple method,
    and where one search has no pack left to give, the next one's fill the cores. `arrays`: `TrialData.to_arrays()` or
    a reference to it. `requested`: packs for which an autoscaler is asked for nodes; nodes that join are used in any
    case. `in_order`: whether packs wait at rungs for those drawn before them, unless they are refilled.
    `checkpoints`: folder in which packs leave checkpoints and go on from those they find; packs that are refilled, or
    of several workers, leave none. `report`: called now and then with new results in the first ledger (the report of
    the running study). `observers`: look on, too.
    An interrupt voids the running packs, to be trained on resume, and ends the search; the outcomes say so.
    Raises ValueError if no pack can fit.
    """
    if own_ray() and not concurrent_packs(resources):
        raise ValueError(f"the cluster must hold a pack, got {resources} for {ray.cluster_resources()}")
    finished_before = [search.queue.counts.finished for search in searches]
    for search in searches:
        for configuration in search.queue.ledger.finished():
            for epoch, score in configuration.curve:
                if epoch in search.training.rungs:
                    search.halving.record(epoch, {configuration.index: score})
    # on the driver's node: it would be lost with any other, and the study with it
    coordinator = Coordinator.options(scheduling_strategy=on_this_node()).remote(  # type: ignore[attr-defined]
        {search.queue.space.name: search.halving for search in searches}
    )
    refill = any(search.queue.refill for search in searches)
    store = None
    if checkpoints and not refill and resources.workers_per_pack == 1:
        store = start_checkpoint_store(checkpoints / PACKS)
    folder = searches[0].queue.ledger.folder.resolve()
    study = "/".join(folder.parts[-2:])  # its name, or its name and the rotation
    arrays = arrays if isinstance(arrays, ray.ObjectRef) else ray.put(dict(arrays))
    jobs = {
        search.queue.space.name: PackJob(
            study=study,
            space=search.queue.space.name,
            config=search.queue.space.config,
            arrays=arrays,
            coordinator=coordinator,
            training=search.training,
            resources=resources,
            train=search.train,
            refill=search.queue.refill,
            store=store,
        )
        for search in searches
    }
    queues = [search.queue for search in searches]
    room, console = Room(resources, requested), console or Console()
    os.environ.update(TUNE_ENVIRONMENT)
    interrupted = False
    try:
        with (
            # Tune reports packs that died, and Ctrl-C, in many lines; the ledger has the reasons, here they are one
            quiet_loggers("ray.tune", "ray.air", "ray.train", level=logging.CRITICAL),
            make_monitor(searches, coordinator, room, study=study, console=console, report=report, others=observers),
        ):
            tuner = Tuner(
                tune.with_resources(
                    tune.with_parameters(PackTrainable, jobs=jobs),
                    tune.PlacementGroupFactory([of_worker(resources)] * resources.workers_per_pack),
                ),
                tune_config=TuneConfig(
                    search_alg=TuneSearcher(queues, room, coordinator, in_order=in_order and not refill),
                    num_samples=-1,  # the queues say when they are over
                    max_concurrent_trials=MOST_TRIALS,  # the searcher holds packs back: nodes come and go
                    reuse_actors=True,
                    trial_name_creator=_pack_name,
                    trial_dirname_creator=_pack_name,
                ),
                run_config=RunConfig(
                    name="tune",
                    storage_path=str(folder),
                    failure_config=FailureConfig(max_failures=0),  # the queues give lost configurations out again
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except BaseException as error:
                if not from_interrupt(error):
                    raise
                for queue in queues:  # before anything else that takes time
                    queue.interrupt("the study was interrupted")
                raise KeyboardInterrupt from error
    except KeyboardInterrupt:
        interrupted = True
    finally:
        room.close()
        ray.kill(coordinator)
        if store:
            store.close()
        shutil.rmtree(folder / "tune", ignore_errors=True)  # Tune's own state, which nobody reads
    if interrupted:
        gc.collect()  # Tune's placement groups, and with them its actors, go with the last reference to its controller
    elif checkpoints and all(queue.over for queue in queues):
        checkpoints.clear(PACKS)
    return [
        SearchOutcome(
            interrupted=interrupted or not search.queue.over,
            counts=search.queue.counts,
            seconds=search.queue.seconds,
            concurrent=room.most,
            trained=search.queue.counts.finished - before,
        )
        for search, before in zip(searches, finished_before, strict=True)
    ]


def _pack_name(trial: Trial) -> str:
    """Return a trial's name, instead of one that spells out every parameter of every lane."""
    return f"pack-{trial.trial_id}"
