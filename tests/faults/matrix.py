"""The fault matrix: a running search is broken in every way we know, and no configuration may be lost or done twice.

    python tests/faults/matrix.py                 # every fault as often as FAULTS says: a table
    python tests/faults/matrix.py --once          # every fault once: what the test suite runs
    python tests/faults/matrix.py --only driver   # faults whose name has this in it

On a cluster of its own, of a head without CPUs and two nodes with one each, on this machine. The configurations are of
the tests' toy space, drawn at random and not pruned: what becomes of one does not depend on the order of things, so
that every disturbed search must end with what an undisturbed loop finds.
"""

import argparse
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests" / "study")]
sys.path[:0] = PATHS
# where a cluster says that it is there: otherwise every other `ray.init()` on this machine would join it
if "RAY_TMPDIR" not in os.environ:
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="zs")
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])  # Ray's workers inherit it

import psutil  # noqa: E402
import ray  # noqa: E402
import toy  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from rich.console import Console  # noqa: E402

from data_prep.errors import UserError  # noqa: E402
from study.driver import Search, SearchOutcome, run_searches  # noqa: E402
from study.leaderboard import Row, rank_rows, read_leaderboard, write_leaderboard  # noqa: E402
from study.ledger import Ledger, open_ledger, read_ledger  # noqa: E402
from study.search import PackSearcher  # noqa: E402
from study.storage import Storage, open_storage  # noqa: E402

CONFIGS, PACK = 24, 4
IDENTITY = {"benchmark": "toy", "select": "pseudo-unseen"}
SECONDS = 0.8
"""What a pack takes."""


@dataclass(kw_only=True)
class Outcome:
    """What became of one disturbed search."""

    asked: int = CONFIGS
    finished: int = 0
    duplicated: int = 0
    lost: int = 0
    equal: bool = False
    """Configurations and leaderboard as in the undisturbed search."""
    disturbed: bool = False
    """Whether the fault came in time."""


def search(folder: Path, *, resume: bool = False, **options: Any) -> SearchOutcome:
    with open_ledger(folder, space=toy.SPACE, identity=IDENTITY, resume=resume) as book:
        of_search = {name: options.pop(name) for name in ("train", "mirror") if name in options}
        of_search = {"train": functools.partial(toy.train, seconds=SECONDS), **of_search}
        (done,) = run_searches(
            [Search(searcher=_searcher(book), **of_search)],
            toy.trial_data().to_arrays(),
            epochs=toy.EPOCHS,
            console=Console(file=io.StringIO()),
            **options,
        )
        return done


def _searcher(book: Ledger) -> PackSearcher:
    return PackSearcher(book, toy.SPACE, configs=CONFIGS, pack=PACK, sampler="random", seed=5)


@functools.cache
def undisturbed() -> list[Any]:
    """What a plain loop makes of the same configurations."""
    with tempfile.TemporaryDirectory() as name, open_ledger(Path(name), space=toy.SPACE, identity=IDENTITY) as book:
        searcher = _searcher(book)
        while isinstance(pack := searcher.suggest("pack"), dict):
            results = [toy.lane_result(lane["params"], lane["seed"]) for lane in pack["lanes"]]
            told = [{"number": x["number"], **asdict(r)} for x, r in zip(pack["lanes"], results, strict=True)]
            searcher.on_trial_complete("pack", {"lanes": told})
        return _essence(book)


def _essence(book: Ledger) -> list[Any]:
    """Every configuration and its score, and the leaderboard they make."""
    rows = [
        Row(
            method="Toy",
            config_id=c.config_id,
            select="pseudo-unseen",
            benchmark="toy",
            clip="toy",
            feature_fingerprint="",
            val_score=c.score,
            test_h_mean=c.metrics["val_h_mean"],
            params=json.dumps(c.params),
        )
        for c in book.best(5)
    ]
    return [[(c.index, c.params, c.seed, c.state, c.score) for c in book.finished()], rank_rows(rows)]


def judge(folder: Path, *, disturbed: bool) -> Outcome:
    """The ledger's own account of a search that has ended."""
    book = read_ledger(folder)
    indices = [c.index for c in book.finished()]
    return Outcome(
        finished=len(set(indices)),
        duplicated=len(indices) - len(set(indices)),
        lost=len(set(range(CONFIGS)) - set(indices)),
        equal=_essence(book) == undisturbed(),
        disturbed=disturbed,
    )


class Machines:
    """The cluster, and what can be done to it."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        toy.register()

    def kill_node(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def drain_node(self) -> None:
        """A spot machine's notice: two seconds, then it is gone."""
        node = self.nodes.pop()
        client = ray._raylet.GcsClient(address=self.cluster.gcs_address)
        preempted = 2  # autoscaler.proto's DRAIN_NODE_REASON_PREEMPTION
        client.drain_node(node.node_id, preempted, "spot notice", int(time.time() * 1000) + 2000)
        time.sleep(2)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_actor(self) -> None:
        """One pack's process, and no other's: only descendants of this process are looked at."""
        packs: list[psutil.Process] = []
        while not packs:
            time.sleep(0.1)
            packs = [
                p for p in psutil.Process().children(recursive=True) if _title(p).startswith("ray::ResourceTrainable.")
            ]
        random.choice(packs).kill()

    def mend(self) -> None:
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(num_cpus=1))

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.as_dict(["cmdline"], ad_value=[])["cmdline"])
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def once_running(folder: Path, moment: float, act: Callable[[], None]) -> Iterator[list[bool]]:
    """Do `act` some seconds after the first configuration was asked for, beside what the block does."""
    done: list[bool] = []

    def wait() -> None:
        journal = folder / "study.journal"
        while not (journal.exists() and '"config_index"' in journal.read_text()):
            time.sleep(0.02)
        time.sleep(moment)
        act()
        done.append(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield done
    thread.join(timeout=30)


def node_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    with once_running(folder, rng.uniform(0.5, 2.5), machines.kill_node) as disturbed:
        search(folder)
    return judge(folder, disturbed=bool(disturbed))


def node_drained(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    with once_running(folder, rng.uniform(0.5, 1.5), machines.drain_node) as disturbed:
        search(folder)
    return judge(folder, disturbed=bool(disturbed))


def actor_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    with once_running(folder, rng.uniform(1.5, 3.0), machines.kill_actor) as disturbed:
        outcome = search(folder)
    return judge(folder, disturbed=bool(disturbed) and outcome.counts.deaths > 0)


def driver_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """With -9, at a random moment from its first configuration on; then resumed."""
    command = [sys.executable, str(Path(__file__)), "--drive", str(folder), "--address", machines.cluster.address]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with once_running(folder, rng.uniform(0.0, 4.0), lambda: driver.send_signal(signal.SIGKILL)):
        driver.wait(timeout=120)
    search(folder, resume=True)
    return judge(folder, disturbed=driver.returncode == -signal.SIGKILL)


def storage_fails(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The storage to which the ledger is copied is gone for a while, then back."""
    import study.driver

    study.driver.MIRROR_EVERY_S = 0.3
    storage, away = open_storage(str(folder.parent / "store"), folder.name), folder.parent / "away"

    def fail() -> None:
        Path(storage.root).rename(away)
        Path(storage.root).write_text("no folder")
        time.sleep(1.5)
        Path(storage.root).unlink()
        away.rename(storage.root)

    with once_running(folder, rng.uniform(0.5, 1.5), fail) as disturbed:
        search(folder, mirror=storage)
    outcome = judge(folder, disturbed=bool(disturbed))
    outcome.equal &= storage.read("study.journal") == (folder / "study.journal").read_bytes()
    return outcome


def disk_full(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The disk with ledger and leaderboard is full for a while; root makes such a disk, others go without."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        filler, failed = folder / "filler", False
        with once_running(folder, rng.uniform(0.5, 2.0), lambda: _fill(filler)):
            try:
                search(folder)
            except Exception:  # Tune wraps the journal's "No space left on device"
                failed = True
        filler.unlink(missing_ok=True)
        search(folder, resume=True)
        outcome = judge(folder, disturbed=failed)
        storage, rows = open_storage(str(folder), "board"), undisturbed()[1]
        write_leaderboard(storage, rows)
        _fill(filler)
        try:
            write_leaderboard(storage, rows[:1])
            outcome.equal = False
        except UserError as error:
            outcome.equal &= "No space left on device" in str(error) and "\n" not in str(error)
        outcome.equal &= read_leaderboard(storage) == rows and _only_leaderboard(storage)
        filler.unlink()
        write_leaderboard(storage, rows[:1])
        outcome.equal &= read_leaderboard(storage) == rows[:1]
        return outcome
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass


def _only_leaderboard(storage: Storage) -> bool:
    return sorted(os.listdir(storage.root)) == [f"leaderboard.{kind}" for kind in ("csv", "md", "parquet")]


FAULTS: dict[Callable[[Machines, Path, random.Random], Outcome], int] = {
    node_killed: 5,
    node_drained: 3,
    actor_killed: 5,
    driver_killed: 20,
    storage_fails: 3,
    disk_full: 3,
}
"""How often each is tried."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="every fault once")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the process that `driver_killed` kills
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")
        toy.register()
        search(options.drive)
        return 0
    print("| fault | times | in time | asked | finished | duplicated | lost | as undisturbed |\n" + "|---" * 8 + "|")
    machines, good = Machines(), True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`: no node may stay
    try:
        for fault, times in FAULTS.items():
            if options.only not in fault.__name__:
                continue
            if fault is disk_full and os.geteuid() != 0:
                continue
            outcomes = []
            for i in range(1 if options.once else times):
                machines.mend()
                with tempfile.TemporaryDirectory() as name:
                    rng = random.Random(f"{options.seed}/{fault.__name__}/{i}")
                    outcomes.append(fault(machines, Path(name) / "study", rng))
            sums = [sum(getattr(o, f) for o in outcomes) for f in ("asked", "finished", "duplicated", "lost")]
            equal, disturbed = sum(o.equal for o in outcomes), sum(o.disturbed for o in outcomes)
            good &= equal == len(outcomes) and sums[0] == sums[1] and not sums[2] + sums[3]
            cells = [fault.__name__.replace("_", " "), len(outcomes), disturbed, *sums, f"{equal} of {len(outcomes)}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    finally:
        machines.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
