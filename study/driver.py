"""Runs searches: Tune schedules packs on the cluster, searchers keep the ledgers, the terminal shows progress."""

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_prep.errors import UserError
from study.board import Board, PackProgress, RungBoard
from study.keeper import Keeper
from study.ledger import JOURNAL
from study.metrics import StudyMetrics
from study.search import Counts, PackSearcher, SearchersInTurn
from study.storage import Storage, push
from study.trainable import PackJob, PackTrainable
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
PAUSE = 20
"""Both rest so many times as long as they took: with 10,000 configurations a look takes seconds."""
PACKS = "packs"
"""Folder of the packs' checkpoints, while a search is not over."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one space, as one of several that run together."""

    searcher: PackSearcher
    """What asks for its packs, with its ledger."""
    train: Callable[..., Training] = train_lanes
    """`train_lanes` or a partial of it."""
    board: RungBoard = field(default_factory=RungBoard)
    """An empty board; it hears the ledger's scores first, so that a resumed search judges as if it had not stopped."""
    mirror: Storage | None = None
    """Where to keep a copy of the ledger, whose own file must be local."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to train, nor in training."""
        return not self.searcher.left and not self.searcher.running


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search did; the configurations themselves are in the ledger."""

    interrupted: bool
    """Ended by Ctrl-C before all configurations were finished."""
    counts: Counts
    """Configurations by state, packs and lanes."""
    seconds: float
    """From its first pack to its last result."""
    concurrent: int
    """Packs that could run at the same time, those of other searches included."""
    trained: int
    """Configurations finished in this run."""


def concurrent_packs(cpus_per_pack: float, gpus_per_pack: float, workers_per_pack: int = 1) -> int:
    """Packs that the cluster holds at once, with all workers its autoscaler may start; `ValueError` if none fits."""
    # no public name for the autoscaler's maximum; Ray's own Data and Train ask this way
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    have = {name: max(most.get(name, 0), now.get(name, 0)) for name in most.keys() | now.keys()}
    fits = [
        int(have.get(name, 0) / (need * workers_per_pack) + 1e-9)
        for name, need in (("CPU", cpus_per_pack), ("GPU", gpus_per_pack))
        if need > 0
    ]
    if not fits or min(fits) < 1:
        each = f"for each of {workers_per_pack} workers " if workers_per_pack > 1 else ""
        raise ValueError(
            f"--cpus-per-pack and --gpus-per-pack must fit the cluster, got {cpus_per_pack:g} and {gpus_per_pack:g} "
            f"{each}for {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
        )
    return min(fits)


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
        with _quiet_tune(), _progress(searches, study, board, epochs, console or Console(), look):
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


class _View:
    """One search on the terminal, in Prometheus and, where its ledger is mirrored, in storage."""

    def __init__(self, search: Search, study: str, epochs: int) -> None:
        self.search, self.epochs = search, epochs
        self.method = search.searcher.space.method
        self.counts = search.searcher.counts
        self.already = self.mirrored = self.counts.finished
        self.began = time.monotonic()
        self.mirror_at = self.began + MIRROR_EVERY_S
        self.metrics = StudyMetrics(study, search.searcher.space.name)
        self.told = False

    def line(self, packs: Mapping[str, PackProgress]) -> str:
        """How it stands."""
        searcher = self.search.searcher
        line = progress_line(
            self.counts,
            packs,
            configs=searcher.configs,
            already=self.already,
            epochs=self.epochs,
            seconds=time.monotonic() - self.began,
        )
        return f"{self.method}: {line}"

    def update(self, packs: Mapping[str, PackProgress]) -> dict[str, PackProgress]:
        """Publish how it stands; returns those of the packs that are its own."""
        mine = {name: pack for name, pack in packs.items() if pack.space == self.search.searcher.space.name}
        if not mine and not self.counts.packs:
            self.began = time.monotonic()  # still waiting for its turn
        self.metrics.update(self.counts, mine.values())
        return mine

    def copy_ledger(self, console: Console) -> None:
        """Mirror the ledger if it has grown."""
        if self.search.mirror and self.counts.finished != self.mirrored:
            self.mirrored, began = self.counts.finished, time.monotonic()
            try:
                push(self.search.mirror, self.search.searcher.ledger.folder / JOURNAL)
            except UserError as error:  # the search goes on; storage may come back
                console.print(f"the ledger could not be copied: {error}", soft_wrap=True, markup=False)
            self.mirror_at = _rested(began, MIRROR_EVERY_S)


def _rested(began: float, at_least: float) -> float:
    """When what began then, and has just ended, may be done again."""
    return began + max(at_least, PAUSE * (time.monotonic() - began))


@contextmanager
def _progress(
    searches: Sequence[Search],
    study: str,
    board: Any,
    epochs: int,
    console: Console,
    look: Callable[[], Any] | None,
) -> Iterator[None]:
    """Show how searches stand: live lines on a terminal, a line now and then elsewhere, and metrics for Prometheus.

    Mirrors the ledgers, too.
    """
    stop, views = threading.Event(), [_View(search, study, epochs) for search in searches]

    first = searches[0].searcher
    looked, look_at = first.counts.finished, time.monotonic() + LOOK_EVERY_S

    def take_a_look() -> None:
        nonlocal looked, look_at
        if look and first.counts.finished != looked and time.monotonic() >= look_at:
            looked, began = first.counts.finished, time.monotonic()
            look()
            look_at = _rested(began, LOOK_EVERY_S)

    def tell(view: _View) -> None:
        view.told = True
        console.print(view.line({}), soft_wrap=True, markup=False)  # errors may hold brackets

    def watch(show_every: float) -> None:
        shown_at = time.monotonic()
        while not stop.wait(WATCH_EVERY_S):
            for view in views:
                if time.monotonic() >= view.mirror_at:
                    view.copy_ledger(console)
            take_a_look()
            try:
                packs = ray.get(board.packs.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue  # a busy cluster answers late; the next lines come soon
            active = [(view, mine) for view in views if (mine := view.update(packs))]
            for view in views:
                if view.search.over and not view.told:
                    tell(view)
            if time.monotonic() - shown_at >= show_every:
                shown_at = time.monotonic()
                show([view.line(mine) + (best_line(view.counts) if live else "") for view, mine in active])

    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def show(lines: Sequence[str]) -> None:
        if live:
            live.update(Text("\n".join(lines)))
        else:
            for line in lines:
                console.print(line, soft_wrap=True, markup=False)

    thread = threading.Thread(target=watch, args=(0.0 if live else PLAIN_LINE_EVERY_S,), daemon=True)
    if live:
        live.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if live:
            live.stop()
        for view in views:
            view.metrics.update(view.counts, ())
            view.copy_ledger(console)
            if not view.told and view.counts.finished + view.counts.packs:
                tell(view)
