"""Runs searches: Tune schedules packs on the cluster, searchers keep the ledgers, the terminal shows progress."""

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from data_prep.storage import Storage
from study.cluster.checkpoint_store import Keeper
from study.cluster.coordinator import Board
from study.cluster.jobs import PackJob, Search, SearchOutcome
from study.cluster.monitor import watch_searches
from study.cluster.pack_actor import PackTrainable
from study.cluster.session import concurrent_packs
from study.cluster.tune_searcher import SearchersInTurn

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and tensorboard file per pack: the ledger has it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in actors
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
}


PACKS = "packs"
"""Folder of the packs' checkpoints, while a search is not over."""


def run_searches(
    searches: Sequence[Search],
    arrays: Mapping[str, Any] | ray.ObjectRef,
    *,
    epochs: int,
    rungs: tuple[int, ...] = (),
    cpus_per_pack: float = 1.0,
    gpus_per_pack: float = 0.0,
    workers_per_pack: int = 1,
    refill: bool = False,
    checkpoints: Storage | None = None,
    checkpoint_every: int = 1,
    console: Console | None = None,
    look: Callable[[], Any] | None = None,
) -> list[SearchOutcome]:
    """Train packs until each search has its configurations finished, on the Ray that is initialised.

    One Tune run whose actors serve all of them: starting an actor costs seconds, as much as a pack of a simple method,
    and where one search has no pack left to give, the next one's fill the cores. `arrays`: `TrialData.to_arrays()` or
    a reference to it. `workers_per_pack`: processes with those CPUs and GPUs each that train a pack together. `refill`:
    whether packs take new configurations in the room of ended ones. `checkpoints`: where packs leave checkpoints,
    `checkpoint_every` epochs apart at least, and go on from those they find; those that are refilled, or of several
    workers, leave none. `look`: called now and then with new results in the first ledger (the report of the running
    study).
    Ctrl-C lets go of the running packs, to be trained on resume, and returns.
    """
    concurrent = concurrent_packs(cpus_per_pack, gpus_per_pack, workers_per_pack)
    already = [search.searcher.counts.finished for search in searches]
    for search in searches:
        for configuration in search.searcher.ledger.finished():
            for epoch, score in configuration.curve:
                if epoch in rungs:
                    search.board.record(epoch, [score])
    # on the driver's node: it would be lost with any other, and the study with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    boards = {search.searcher.space.name: search.board for search in searches}
    board = Board.options(scheduling_strategy=here).remote(boards)  # type: ignore[attr-defined]
    keeper = None
    if checkpoints and not refill and workers_per_pack == 1:
        keeper = Keeper.options(scheduling_strategy=here).remote(checkpoints / PACKS)  # type: ignore[attr-defined]
    folder = searches[0].searcher.ledger.folder.resolve()
    study = "/".join(folder.parts[-2:])  # its name, or its name and the rotation
    arrays = arrays if isinstance(arrays, ray.ObjectRef) else ray.put(dict(arrays))
    jobs = {
        search.searcher.space.name: PackJob(
            study=study,
            space=search.searcher.space.name,
            config=search.searcher.space.config,
            arrays=arrays,
            board=board,
            epochs=epochs,
            rungs=rungs,
            cpus=cpus_per_pack,
            gpus=gpus_per_pack,
            refill=refill,
            train=search.train,
            keeper=keeper,
            checkpoint_every=checkpoint_every,
            workers=workers_per_pack,
        )
        for search in searches
    }
    if refill:
        for search in searches:
            search.searcher.give = functools.partial(_give, board)
    of_worker = {"CPU": cpus_per_pack} | ({"GPU": gpus_per_pack} if gpus_per_pack else {})
    os.environ.update(TUNE_ENVIRONMENT)
    try:
        with _quiet_tune(), watch_searches(searches, study, board, epochs, console or Console(), look):
            Tuner(
                tune.with_resources(
                    tune.with_parameters(PackTrainable, jobs=jobs),
                    tune.PlacementGroupFactory([of_worker] * workers_per_pack),
                ),
                tune_config=TuneConfig(
                    search_alg=SearchersInTurn([search.searcher for search in searches]),
                    num_samples=-1,  # the searchers say when they are finished
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    trial_name_creator=_pack_name,
                    trial_dirname_creator=_pack_name,
                ),
                run_config=RunConfig(
                    name="tune",
                    storage_path=str(folder),
                    failure_config=FailureConfig(max_failures=0),  # the searchers train lost configurations again
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
    finally:
        for actor in filter(None, (board, keeper)):
            ray.kill(actor)
        shutil.rmtree(folder / "tune", ignore_errors=True)  # Tune's own state, which nobody reads
    if checkpoints and all(search.over for search in searches):
        checkpoints.clear(PACKS)
    return [_outcome(search, concurrent, finished) for search, finished in zip(searches, already, strict=True)]


def _outcome(search: Search, concurrent: int, already: int) -> SearchOutcome:
    """How a search ended; what was in training waits for a resume."""
    searcher, interrupted = search.searcher, not search.over
    searcher.interrupt("the study was interrupted")
    return SearchOutcome(
        interrupted=interrupted,
        counts=searcher.counts,
        seconds=searcher.seconds,
        concurrent=concurrent,
        trained=searcher.counts.finished - already,
    )


def _give(board: Any, pack: str, lanes: list[dict[str, Any]]) -> None:
    """Lay lanes out for a running pack; it looks for them when the report that freed their room is dealt with."""
    ray.get(board.give.remote(pack, lanes))


def _pack_name(trial: Any) -> str:
    """Instead of a name that spells out every parameter of every lane."""
    return f"pack-{trial.trial_id}"


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune reports packs that died, and Ctrl-C, in many lines; the ledger has the reasons and we say them in one."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
