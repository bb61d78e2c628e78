"""Does the study scale, in nodes and in configurations?

    python tests/bench/scale_out.py nodes                     # the same work on 1, 2, 4 simulated nodes
    python tests/bench/scale_out.py ledger --configs 10000    # queue, ledger, leaderboard: time and memory

`nodes` runs packs that sleep, on nodes of one CPU each, so that this machine's cores do not decide: what is measured is
what scheduling, ledger and queue add. `ledger` fills and ends packs without Ray, as one driver does.
"""

import argparse
import functools
import io
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests" / "study")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])  # Ray's workers inherit it
if "RAY_TMPDIR" not in os.environ:  # where a cluster says that it is there
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="zs")

import ray  # noqa: E402
import toy  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from rich.console import Console  # noqa: E402

from study.cluster.jobs import Search  # noqa: E402
from study.cluster.search_run import run_searches  # noqa: E402
from study.evaluation.leaderboard import rank_rows  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.outputs.folder import open_storage  # noqa: E402
from study.outputs.leaderboard_files import read_leaderboard, write_leaderboard  # noqa: E402
from study.reporting.running import write_running_report  # noqa: E402
from study.search.ledger import Ledger, open_ledger  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import PackReport, SamplerName  # noqa: E402
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
    parser.add_argument("what", choices=["nodes", "ledger"])
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
    else:
        ledger(options.configs, sampler=options.sampler, pack=options.pack, url=options.ledger)


if __name__ == "__main__":
    main()
