"""Runs the search: Tune schedules packs on the cluster, the searcher keeps the ledger, the terminal shows progress."""

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_prep.errors import UserError
from study.ledger import JOURNAL
from study.metrics import StudyMetrics
from study.protocol import RungBoard
from study.search import Counts, PackSearcher
from study.storage import Storage, push
from study.trainable import Board, PackJob, PackProgress, PackTrainable
from study.trainer import Training, train_lanes

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and tensorboard file per pack: the ledger has it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in actors
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
}
WATCH_EVERY_S = 0.5
"""Seconds between looks at how the search stands."""

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between progress lines where standard output is no terminal."""

MIRROR_EVERY_S = 10.0
"""Seconds between copies of the ledger."""
LOOK_EVERY_S = 30.0
"""Seconds between calls of `look`."""


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search did; the configurations themselves are in the ledger."""

    interrupted: bool
    """Ended by Ctrl-C before all configurations were finished."""
    counts: Counts
    """Configurations by state, packs and lanes."""
    seconds: float
    """Wall time."""
    concurrent: int
    """Packs that could run at the same time."""
    trained: int
    """Configurations finished in this run."""


def concurrent_packs(cpus_per_pack: float, gpus_per_pack: float) -> int:
    """Packs that the cluster holds at once, with all workers its autoscaler may start; `ValueError` if none fits."""
    # no public name for the autoscaler's maximum; Ray's own Data and Train ask this way
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    have = {name: max(most.get(name, 0), now.get(name, 0)) for name in most.keys() | now.keys()}
    fits = [
        int(have.get(name, 0) / need + 1e-9)
        for name, need in (("CPU", cpus_per_pack), ("GPU", gpus_per_pack))
        if need > 0
    ]
    if not fits or min(fits) < 1:
        raise ValueError(
            f"--cpus-per-pack and --gpus-per-pack must fit the cluster, got {cpus_per_pack:g} and {gpus_per_pack:g} "
            f"for {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
        )
    return min(fits)


def run_search(
    searcher: PackSearcher,
    arrays: Mapping[str, Any] | ray.ObjectRef,
    *,
    epochs: int,
    rungs: tuple[int, ...] = (),
    board: RungBoard | None = None,
    cpus_per_pack: float = 1.0,
    gpus_per_pack: float = 0.0,
    refill: bool = False,
    train: Callable[..., Training] = train_lanes,
    console: Console | None = None,
    mirror: Storage | None = None,
    look: Callable[[], Any] | None = None,
) -> SearchOutcome:
    """Train packs until the searcher has all its configurations finished, on the Ray that is initialised.

    `arrays`: `TrialData.to_arrays()` or a reference to it. `board`: an empty board; it hears the ledger's scores first,
    so that a resumed study judges as if it had not stopped. `refill`: whether packs take new configurations in the room
    of ended ones. `train`: `train_lanes` or a partial of it. `mirror`: where to keep a copy of the ledger, whose own
    file must be local. `look`: called now and then with new results in the ledger (the report of the running study).
    Ctrl-C lets go of the running packs, to be trained on resume, and returns.
    """
    started = time.monotonic()
    concurrent, already = concurrent_packs(cpus_per_pack, gpus_per_pack), searcher.counts.finished
    board = board or RungBoard()
    for configuration in searcher.ledger.finished():
        for epoch, score in configuration.curve:
            if epoch in rungs:
                board.record(epoch, [score])
    # on the driver's node: it would be lost with any other, and the study with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    judge = Board.options(scheduling_strategy=here).remote(board)  # type: ignore[attr-defined]
    study = "/".join(searcher.ledger.folder.resolve().parts[-2:])  # its name, or its name and the rotation
    job = PackJob(
        study=study,
        space=searcher.space.name,
        config=searcher.space.config,
        arrays=arrays if isinstance(arrays, ray.ObjectRef) else ray.put(dict(arrays)),
        board=judge,
        epochs=epochs,
        rungs=rungs,
        cpus=cpus_per_pack,
        gpus=gpus_per_pack,
        refill=refill,
        train=train,
    )
    if refill:
        searcher.give = functools.partial(_give, judge)
    os.environ.update(TUNE_ENVIRONMENT)
    try:
        metrics = StudyMetrics(study, searcher.space.name)
        with _quiet_tune(), _progress(searcher, judge, epochs, console or Console(), mirror, metrics, look):
            Tuner(
                tune.with_resources(
                    tune.with_parameters(PackTrainable, job=job), {"cpu": cpus_per_pack, "gpu": gpus_per_pack}
                ),
                tune_config=TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,  # the searcher says when it is finished
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    trial_name_creator=_pack_name,
                    trial_dirname_creator=_pack_name,
                ),
                run_config=RunConfig(
                    name="tune",
                    storage_path=str(searcher.ledger.folder.resolve()),
                    failure_config=FailureConfig(max_failures=0),  # the searcher trains lost configurations again
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
    finally:
        ray.kill(judge)
        shutil.rmtree(searcher.ledger.folder / "tune", ignore_errors=True)  # Tune's own state, which nobody reads
    interrupted = searcher.left > 0 or searcher.running > 0
    searcher.interrupt("the study was interrupted")
    return SearchOutcome(
        interrupted=interrupted,
        counts=searcher.counts,
        seconds=time.monotonic() - started,
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


# --- progress -------------------------------------------------------------------------------------------------------


def progress_line(
    counts: Counts, packs: Mapping[str, PackProgress], *, configs: int, already: int, epochs: int, seconds: float
) -> str:
    """One line: configurations done, pruned, failed, best score, lanes alive, time left.

    `already`: configurations that were finished before this run; `seconds`: how long this run has taken.
    """
    done = counts.finished
    parts = [f"{done}/{configs} configs"]
    parts += [f"{n} {name}" for n, name in ((counts.pruned, "pruned"), (counts.failed, "failed")) if n]
    if counts.best is not None:
        parts.append(f"best score {counts.best:.4f}" + (f" (H {100 * counts.best_h:.2f})" if counts.best_h else ""))
    if packs:
        alive = sum(p.alive for p in packs.values())
        parts.append(f"{alive}/{sum(p.lanes for p in packs.values())} lanes alive in {len(packs)} packs")
    if counts.deaths:
        parts.append(f"{counts.deaths} packs died ({counts.last_death})")
    # lanes that a running pack has pruned are finished work, the others as far as their epochs
    work = done - already + sum(p.lanes - p.alive * (1 - p.epoch / epochs) for p in packs.values())
    if work > 0 and done < configs:
        left = max(0.0, (configs - already - work) * seconds / work)
        parts.append(f"about {int(left) // 60}:{int(left) % 60:02d} left")
    return " · ".join(parts)


def best_line(counts: Counts) -> str:
    """A second line for terminals, "" while nothing is complete."""
    values = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in counts.best_params.items()]
    return "\nbest: " + ", ".join(values) if values else ""


@contextmanager
def _progress(
    searcher: PackSearcher,
    board: Any,
    epochs: int,
    console: Console,
    mirror: Storage | None,
    metrics: StudyMetrics,
    look: Callable[[], Any] | None,
) -> Iterator[None]:
    """Show how the search stands: a live line on a terminal, a line now and then elsewhere, and metrics for Prometheus.

    Mirrors the ledger, too.
    """
    started, already, stop = time.monotonic(), searcher.counts.finished, threading.Event()
    mirrored, mirrored_at = already, started
    looked, looked_at = already, started

    def line(packs: Mapping[str, PackProgress]) -> str:
        return progress_line(
            searcher.counts,
            packs,
            configs=searcher.configs,
            already=already,
            epochs=epochs,
            seconds=time.monotonic() - started,
        )

    def copy_ledger() -> None:
        nonlocal mirrored, mirrored_at
        if mirror and searcher.counts.finished != mirrored:
            mirrored, mirrored_at = searcher.counts.finished, time.monotonic()
            try:
                push(mirror, searcher.ledger.folder / JOURNAL)
            except UserError as error:  # the search goes on; storage may come back
                console.print(f"the ledger could not be copied: {error}", soft_wrap=True)

    def take_a_look() -> None:
        nonlocal looked, looked_at
        if look and searcher.counts.finished != looked and time.monotonic() - looked_at >= LOOK_EVERY_S:
            looked, looked_at = searcher.counts.finished, time.monotonic()
            look()

    def watch(show_every: float) -> None:
        shown_at = started
        while not stop.wait(WATCH_EVERY_S):
            if time.monotonic() - mirrored_at >= MIRROR_EVERY_S:
                copy_ledger()
            take_a_look()
            try:
                packs = ray.get(board.packs.remote(), timeout=5)
                metrics.update(searcher.counts, packs.values())
                if time.monotonic() - shown_at >= show_every:
                    shown_at = time.monotonic()
                    show(line(packs))
            except ray.exceptions.RayError:
                pass  # a busy cluster answers late; the next line comes soon

    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    show: Callable[[str], None] = (
        (lambda s: live.update(Text(s + best_line(searcher.counts))))
        if live
        else (lambda s: console.print(s, soft_wrap=True))
    )
    thread = threading.Thread(target=watch, args=(0.0 if live else PLAIN_LINE_EVERY_S,), daemon=True)
    if live:
        live.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        metrics.update(searcher.counts, ())
        copy_ledger()
        if live:
            live.stop()
        console.print(line({}), soft_wrap=True)
