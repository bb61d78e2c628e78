"""Does the study scale, in nodes and in configurations?

    python tests/bench/scale_out.py nodes                     # the same work on 1, 2, 4 simulated nodes
    python tests/bench/scale_out.py ledger --configs 10000    # queue, ledger, leaderboard: time and memory
    python tests/bench/scale_out.py driver --counts 4 8       # CPU of the driver for a pack, with real actors
    python tests/bench/scale_out.py actors --counts 8 100 1000       # the same with actors that are simulated

`nodes` runs packs that sleep, on nodes of one CPU each, so that this machine's cores do not decide: what is measured is
what scheduling, ledger and queue add. `ledger` fills and ends packs without Ray, as one driver does. `driver` counts
the CPU time of a driver whose actors do nothing. `actors` puts a stand-in in the place of the part of Tune that talks
to actors: so the driver has a thousand of them on any machine. Only the transport of calls and results is missing.
"""

import argparse
import functools
import io
import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests" / "study")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])  # Ray's workers inherit it
if "RAY_TMPDIR" not in os.environ:  # where a cluster says that it is there
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="zs")

import pytest  # noqa: E402
import ray  # noqa: E402
import toy  # noqa: E402
from ray.air.execution._internal.tracked_actor import TrackedActor  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.tune.execution import tune_controller  # noqa: E402
from rich.console import Console  # noqa: E402

from study.cluster.capacity import Room  # noqa: E402
from study.cluster.coordinator import Handed  # noqa: E402
from study.cluster.jobs import Search  # noqa: E402
from study.cluster.search_run import run_searches  # noqa: E402
from study.cluster.tune_searcher import TuneSearcher  # noqa: E402
from study.evaluation.leaderboard import rank_rows  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.outputs.folder import open_storage  # noqa: E402
from study.outputs.leaderboard_files import read_leaderboard, write_leaderboard  # noqa: E402
from study.reporting.running import write_running_report  # noqa: E402
from study.search.ledger import Ledger, open_ledger  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import Lane, PackReport, SamplerName  # noqa: E402
from study.training.loop import TrainingOptions  # noqa: E402


def nodes(counts: list[int], *, packs: int, seconds: float, pack: int = 8) -> None:
    """Share of the nodes' time in which packs train; efficiency: that share over the one with the fewest nodes.

    A node's time begins with the end of its first pack: starting its actor is work of this machine's cores, which
    real nodes do side by side.
    """
    print("| nodes | started after s | configurations/s | in training | efficiency |\n|--:|--:|--:|--:|--:|")
    least = 0.0
    for count in counts:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            toy.register()
            ends = run(packs=packs, seconds=seconds, pack=pack)
        finally:
            ray.shutdown()
            cluster.shutdown()
        spent = sum(ends[-count:]) - sum(ends[:count])  # each node's first and last end, whichever they are
        training = (packs - count) * seconds / spent
        least = least or training
        begun, rate = ends[count - 1] - seconds, training * count * pack / seconds
        print(f"| {count} | {begun:.1f} | {rate:.1f} | {training:.3f} | {training / least:.3f} |", flush=True)


def run(*, packs: int, seconds: float, pack: int) -> list[float]:
    """When packs of one search ended, in seconds after the first began."""
    with tempfile.TemporaryDirectory() as name, open_ledger(Path(name), space=toy.SPACE, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, toy.SPACE, configs=packs * pack, pack=pack, sampler="random")
        train = functools.partial(toy.Training, seconds=seconds)
        search = Search(queue=queue, training=TrainingOptions(epochs=toy.EPOCHS), train=train)
        quiet = Console(file=io.StringIO())
        run_searches([search], toy.trial_data().to_arrays(), resources=ResourceOptions(), console=quiet)
        trials = book.trials()
    first = min(t.datetime_start for t in trials if t.datetime_start)
    ends = {t.number // pack: t.datetime_complete for t in trials if t.datetime_complete}  # of a pack's last lane
    return sorted((end - first).total_seconds() for end in ends.values())


def driver(counts: list[int], *, packs: int, pack: int, simulated: bool) -> None:
    """CPU time of the driver for a pack, from a third of the packs on.

    By then all actors run, if there are not many more of them than cores that start them: else give it more packs.
    """
    print("| actors | CPU ms for a pack | actors that packs of 30 s keep busy |\n|--:|--:|--:|")
    for count in counts:
        cpus = 2 if simulated else count
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        toy.register()
        each = _cpu_of_a_pack(count, max(packs, 3 * count), pack, simulated=simulated)
        ray.shutdown()
        print(f"| {count} | {1000 * each:.1f} | {30 / each:.0f} |", flush=True)


def _cpu_of_a_pack(actors: int, packs: int, pack: int, *, simulated: bool) -> float:
    spent: list[float] = []
    end = PackQueue.end

    def noted(queue: PackQueue, pack_id: str, report: PackReport | None) -> None:
        end(queue, pack_id, report)
        spent.append(time.process_time())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackQueue, "end", noted)
        if simulated:
            patch.setattr(tune_controller, "RayActorManager", functools.partial(Simulated, actors))
            patch.setattr(Room, "packs", lambda *_: actors)
            patch.setattr(TuneSearcher, "_hand", lambda _, actor, pack: HANDED.append(pack))
        run(packs=packs, seconds=0.0, pack=pack)
    return (spent[-1] - spent[packs // 3]) / (packs - 1 - packs // 3)


HANDED: list[Handed] = []
"""The pack that the searcher has just handed to a simulated actor: it takes it with its next call, which is at once."""


class Simulated:
    """In the place of Tune's actor manager: actors start at once, and packs end in the order in which they began.

    As many packs run as there are actors, until no more are left.
    """

    def __init__(self, actors: int, resource_manager: object) -> None:
        self._actors, self._running = actors, deque[tuple[Any, Any, Sequence[Lane]]]()
        self._pending, self._resets, self._idle = deque[Any](), deque[tuple[Any, Any]](), 0
        self._started, self._lanes = 0, dict[Any, Sequence[Lane]]()
        self._live_actors_to_ray_actors_resources: dict[Any, tuple[Any, None]] = {}
        self.num_live_actors, self.num_actor_tasks, self.num_total_actors = 1, 0, 0

    @property
    def num_pending_actors(self) -> int:
        return len(self._pending)

    def add_actor(
        self, *, cls: Any, resource_request: Any, kwargs: Any, on_start: Any, on_stop: Any, on_error: Any
    ) -> Any:
        actor = TrackedActor(self._started, on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._started, self._lanes[actor] = self._started + 1, kwargs["config"]["pack"].lanes
        self._pending.append(actor)
        return actor

    def schedule_actor_task(
        self, tracked_actor: Any, method_name: str, *, args: Any = (), on_result: Any = None, **_: Any
    ) -> None:
        if method_name == "reset":
            self._lanes[tracked_actor] = args[0]["pack"].lanes
            self._resets.append((tracked_actor, on_result))
        elif method_name == "train":
            lanes = HANDED.pop().lanes if HANDED else self._lanes.pop(tracked_actor, [])
            self._running.append((tracked_actor, on_result, lanes))

    def next(self, timeout: float) -> bool:
        """Let one thing happen; the last packs end when the driver has asked several times and begun no more."""
        if self._pending:
            actor = self._pending.popleft()
            self._live_actors_to_ray_actors_resources[actor] = (ACTOR, None)
            actor._on_start(actor)
        elif self._resets:
            actor, on_result = self._resets.popleft()
            on_result(actor, True)
        elif len(self._running) >= self._actors or (self._idle > 3 and self._running):
            actor, on_result, lanes = self._running.popleft()
            ended = {lane.number: toy.lane_result(lane.params, lane.seed) for lane in lanes}
            report = PackReport(ended=ended, over=bool(lanes))
            on_result(actor, {"report": report, "done": not lanes, "config": {}, **RESULT})
        else:
            self._idle += 1
            return False
        self._idle = 0
        return True

    def is_actor_started(self, tracked_actor: Any) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: Any) -> bool:
        return False

    def remove_actor(self, tracked_actor: Any, **_: Any) -> bool:
        self._live_actors_to_ray_actors_resources.pop(tracked_actor, None)
        return True

    def clear_actor_task_futures(self, tracked_actor: Any) -> None:
        """Nothing waits: a pack that has ended has no task."""

    def get_live_actors_resources(self) -> list[Any]:
        return []

    def cleanup(self) -> None:
        """Nothing runs."""


RESULT = {"training_iteration": 1, "time_total_s": 30.0, "time_this_iter_s": 30.0, "timestamp": 0, "pid": 1}
RESULT |= {"hostname": "node", "node_ip": "10.0.0.1", "date": "", "time_since_restore": 30.0}
"""What Tune's Trainable adds to a result."""


ACTOR = SimpleNamespace(get_auto_filled_metrics=SimpleNamespace(remote=lambda **_: ray.put(RESULT)))
"""What Tune asks of an actor's handle: one small call for every pack."""


def ledger(configs: int, *, sampler: SamplerName, pack: int, url: str | None) -> None:
    """CPU time and memory per configuration, tenth by tenth; then how long its readers take."""

    def opened(folder: Path, **options: Any) -> Ledger:
        return open_ledger(
            folder, space=toy.SPACE, identity=toy.IDENTITY, url=url, name=f"bench-{os.getpid()}", **options
        )

    print("| configurations | CPU ms each | seconds | memory of the driver, MB |\n|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        with opened(folder) as book:
            queue = PackQueue(book, toy.SPACE, configs=configs, pack=pack, sampler=sampler)
            done, step = 0, max(1, configs // 10)
            started, clock = time.process_time(), time.perf_counter()
            while lanes := queue.next_pack("pack"):
                queue.end("pack", PackReport(ended={x.number: toy.lane_result(x.params, x.seed) for x in lanes}))
                if (done + len(lanes)) // step > done // step:
                    each = 1000 * (time.process_time() - started) / step
                    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    spent = time.perf_counter() - clock
                    print(f"| {done + len(lanes)} | {each:.2f} | {spent:.1f} | {memory:.0f} |", flush=True)
                    started = time.process_time()
                done += len(lanes)
        with timed("opened again and recovered"):
            book = opened(folder, resume=True)
            PackQueue(book, toy.SPACE, configs=configs, pack=pack, sampler=sampler)
        with timed(f"a leaderboard of all {configs}"):
            storage = open_storage(name, "board")
            write_leaderboard(storage, rank_rows([toy.row(c) for c in book.best(configs)]))
            assert len(read_leaderboard(storage)) == sum(c.state == "complete" for c in book.finished())
        with timed("the running study's page"):
            write_running_report(storage, book)
        if url:
            with timed("written as a journal"):
                book.write_journal()
        book.close()
        print(f"journal: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


@contextmanager
def timed(what: str) -> Iterator[None]:
    started, cpu = time.perf_counter(), time.process_time()
    yield
    spent, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{what}: {spent:.1f} s, {cpu:.1f} s of CPU", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["nodes", "ledger", "driver", "actors"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4], help="numbers of nodes")
    parser.add_argument("--packs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="what a pack takes")
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--sampler", choices=["tpe", "random"], default="random")
    parser.add_argument("--pack", type=int, default=16)
    parser.add_argument("--ledger", help="database instead of a journal, as of study/run.py")
    options = parser.parse_args()
    if options.what == "nodes":
        nodes(options.counts, packs=options.packs, seconds=options.seconds)
    elif options.what in ("driver", "actors"):
        driver(options.counts, packs=options.packs, pack=options.pack, simulated=options.what == "actors")
    else:
        ledger(options.configs, sampler=options.sampler, pack=options.pack, url=options.ledger)


if __name__ == "__main__":
    main()
