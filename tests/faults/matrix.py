"""The fault matrix: a running search is broken in every way we know, and no configuration may be lost or done twice.

    python tests/faults/matrix.py                 # every fault as often as FAULTS says: a table
    python tests/faults/matrix.py --once          # every fault once
    python tests/faults/matrix.py --only driver   # faults whose name has this, or one of several words, in it

On a cluster of its own, of a head without CPUs and two nodes with one each, on this machine. The configurations are
linear probes, drawn at random, slowed down and not pruned: what becomes of one does not depend on the order of things,
so that every disturbed search must end with what an undisturbed loop finds, to the bit. A pack leaves a checkpoint when
it may; `epochs again` are those that were lost and trained a second time, on an average of the tries (a pack has 16).
"""

import argparse
import functools
import io
import itertools
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "study"), str(ROOT / "tests" / "cluster")]
# where a cluster says that it is there: otherwise every other `ray.init()` on this machine would join it
if "RAY_TMPDIR" not in os.environ:
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="zs")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # Ray's workers inherit it

import psutil  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from postgres_server import postgres_server, programs  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from rich.console import Console  # noqa: E402
from test_autoscaler import cluster as autoscaling_cluster  # noqa: E402

import search_spaces  # noqa: E402
from data_prep.errors import UserError  # noqa: E402
from data_prep.storage import Storage, locate  # noqa: E402
from models.stacked import unit_features  # noqa: E402
from search_spaces import Space  # noqa: E402
from study.cluster.jobs import Search, SearchOutcome  # noqa: E402
from study.cluster.search_run import run_searches  # noqa: E402
from study.evaluation.leaderboard import rank_rows  # noqa: E402
from study.options import ResourceOptions  # noqa: E402
from study.outputs.folder import open_storage  # noqa: E402
from study.outputs.leaderboard_files import read_leaderboard, write_leaderboard  # noqa: E402
from study.protocol.trial_data import TrialData  # noqa: E402
from study.search.ledger import Ledger, open_ledger, read_ledger  # noqa: E402
from study.search.pack_queue import PackQueue  # noqa: E402
from study.search.records import PackReport  # noqa: E402
from study.training.loop import OnEpoch, Training, TrainingOptions, train_pack  # noqa: E402
from study.training.pack_checkpoint import PackCheckpoint  # noqa: E402

SPACE = search_spaces.load("linear-probe")
assert isinstance(SPACE, Space)
CONFIGS, PACK, EPOCHS = 24, 4, 16
OPTIONS = TrainingOptions(epochs=EPOCHS, criterion="h")
IDENTITY = replace(toy.IDENTITY, space="linear-probe", epochs=EPOCHS)
HANGS = 20.0
"""Seconds for which a write to a hanging storage takes."""
SECONDS = 0.8
"""What a pack takes."""


@dataclass(kw_only=True)
class Outcome:
    """What became of one disturbed search."""

    requested: int = CONFIGS
    finished: int = 0
    duplicated: int = 0
    lost: int = 0
    again: int = 0
    """Epochs of packs that were trained a second time."""
    equal: bool = False
    """Configurations and leaderboard as in the undisturbed search."""
    disturbed: bool = False
    """Whether the fault came in time."""


def data() -> TrialData:
    """Ten classes of ten images around their text features, two of them unseen."""
    g = torch.Generator().manual_seed(0)
    names_CD, labels = unit_features(torch.randn(10, 16, generator=g).half()), torch.arange(10).repeat_interleave(10)
    images_ID = unit_features((names_CD[labels] + 0.3 * torch.randn(100, 16, generator=g)).half())
    return TrialData(
        source_features_ID=images_ID[:80],
        source_labels_I=labels[:80],
        held_out_I=torch.arange(80) % 5 == 0,
        target_features_TD=images_ID,
        seen_C=torch.arange(10) < 8,
        fold_C=torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1, -1]),
        name_features_CD=names_CD,
        node_features_ND=names_CD,
        class_node_C=torch.arange(10),
        edges_E2=torch.zeros(0, 2, dtype=torch.int64),
        logit_scale=10.0,
        fingerprint="toy",
    )


def train(
    configs: list[Any],
    *,
    seeds: list[int],
    on_epoch: OnEpoch,
    checkpoint: PackCheckpoint,
    log: Path,
    memory: int = PACK,
    seconds: float = SECONDS,
    **options: Any,
) -> Training:
    """Train slowly, with a line in `log` for every epoch; out of memory with more than `memory` configurations."""
    checkpoint.seconds = 0.2

    def slowly(epoch: int, alive: int) -> None:
        time.sleep(seconds / EPOCHS)
        if epoch > 2 and alive > memory and configs[0].lr < 1e-3:
            raise MemoryError("as if the memory had no room for more")
        with log.open("a") as file:
            file.write(f"{seeds[0]} {epoch}\n")
        on_epoch(epoch, alive)

    return Training(configs, seeds=seeds, on_epoch=slowly, checkpoint=checkpoint, **options)


def search(
    folder: Path,
    *,
    resume: bool = False,
    memory: int = PACK,
    seconds: float = SECONDS,
    requested: int = 1,
    mirror: Storage | None = None,
    **database: Any,
) -> SearchOutcome:
    """Search; `database`: url and patience of a ledger that is no file, whose journal is written at the end."""
    with open_ledger(folder, space=SPACE, identity=IDENTITY, resume=resume, **database) as book:
        slow = functools.partial(train, log=_log(folder), memory=memory, seconds=seconds)
        (done,) = run_searches(
            [Search(queue=_queue(book), training=OPTIONS, train=slow, mirror=mirror)],
            data().to_arrays(),
            resources=ResourceOptions(),
            requested=requested,
            checkpoints=mirror or locate(folder),
            console=Console(file=io.StringIO()),
        )
        if database:
            book.write_journal()
        return done


def drive(folder: Path, address: str, *options: str) -> subprocess.Popen[bytes]:
    """Search in a process of its own, on the cluster at an address."""
    command = [sys.executable, str(Path(__file__)), "--drive", str(folder), "--address", address, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _log(folder: Path) -> Path:
    return folder.parent / "epochs"


def _queue(book: Ledger) -> PackQueue:
    return PackQueue(book, SPACE, configs=CONFIGS, pack=PACK, sampler="random", seed=5)


@functools.cache
def undisturbed() -> list[Any]:
    """What a plain loop makes of the same configurations."""
    with tempfile.TemporaryDirectory() as name, open_ledger(Path(name), space=SPACE, identity=IDENTITY) as book:
        queue = _queue(book)
        while lanes := queue.next_pack("pack"):
            configs, seeds = zip(*((SPACE.config(**lane.params), lane.seed) for lane in lanes), strict=True)
            results = train_pack(configs, seeds=seeds, data=data(), options=OPTIONS)
            queue.end("pack", PackReport(ended={x.number: r for x, r in zip(lanes, results, strict=True)}))
        return _essence(book)


def _essence(book: Ledger) -> list[Any]:
    """Every configuration and its score, and the leaderboard they make."""
    rows = [toy.row(c) for c in book.best(5)]
    return [[(c.index, c.params, c.seed, c.state, c.score) for c in book.finished()], rank_rows(rows)]


def judge(folder: Path, *, disturbed: bool) -> Outcome:
    """The ledger's own account of a search that has ended."""
    book = read_ledger(folder)
    indices = [c.index for c in book.finished()]
    epochs = _log(folder).read_text().splitlines()
    return Outcome(
        finished=len(set(indices)),
        duplicated=len(indices) - len(set(indices)),
        lost=len(set(range(CONFIGS)) - set(indices)),
        again=len(epochs) - len(set(epochs)),
        equal=_essence(book) == undisturbed(),
        disturbed=disturbed,
    )


class Machines:
    """The cluster, and what can be done to it."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

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

    def remove_node(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=True)

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
def once(ready: Callable[[], bool], moment: float, act: Callable[[], None]) -> Iterator[list[bool]]:
    """Do `act` some seconds after something is the case, beside what the block does."""
    done: list[bool] = []

    def wait() -> None:
        while not ready():
            time.sleep(0.02)
        time.sleep(moment)
        act()
        done.append(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield done
    thread.join(timeout=30)


def drawing(folder: Path) -> Callable[[], bool]:
    """Return whether the first configuration was drawn."""
    journal = folder / "study.journal"
    return lambda: journal.exists() and '"config_index"' in journal.read_text()


def training(folder: Path) -> Callable[[], bool]:
    """Whether both nodes train a pack."""
    log = _log(folder)
    return lambda: log.exists() and len({line.split()[0] for line in log.read_text().splitlines()}) > 1


def node_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    with once(training(folder), rng.uniform(0.0, 1.5), machines.kill_node) as disturbed:
        search(folder)
    return judge(folder, disturbed=bool(disturbed))


def node_drained(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """Its pack leaves at the end of an epoch, with nothing lost: that is no death."""
    with once(training(folder), rng.uniform(0.0, 1.0), machines.drain_node) as disturbed:
        outcome = search(folder)
    moved = any(t.user_attrs.get("reason") == "its node was drained" for t in read_ledger(folder).trials())
    done = judge(folder, disturbed=bool(disturbed) and moved)
    done.equal &= not outcome.counts.deaths and not done.again
    return done


def node_joins(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """A search begins on one node; the other joins, and trains packs as well."""
    machines.remove_node()
    over, left = threading.Event(), threading.Event()

    def join() -> None:
        with mock.patch("ray._private.utils.set_sigterm_handler"):  # a thread cannot install one
            machines.mend()
        over.wait()  # the kernel ends a node with the thread that has started it
        machines.remove_node()
        left.set()

    with once(drawing(folder), rng.uniform(0.0, 1.5), join):
        search(folder, seconds=4 * SECONDS)  # an actor on the new node takes seconds to start
        over.set()
        left.wait(timeout=30)
    packs = [line.split()[0] for line in _log(folder).read_text().splitlines()]
    turns = sum(a != b for a, b in itertools.pairwise(packs))  # on one node a pack's epochs come one after the other
    return judge(folder, disturbed=turns >= len(set(packs)))


def autoscaled(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """Another cluster has no worker; its autoscaler brings two for the packs, and takes them away at the end."""
    # as on the cluster that this process is connected to
    with mock.patch.dict(os.environ, RAY_AUTH_MODE="disabled"), autoscaling_cluster() as address:
        cluster, alive = ray._raylet.GcsClient(address=address), 0  # GcsNodeInfo's state

        def workers() -> int:
            nodes = cluster.get_all_node_info(timeout=10).values()
            return sum(node.state == alive and not node.is_head_node for node in nodes)

        driver, seen = drive(folder, address, "--requested", "2", "--seconds", "4"), [workers()]

        def watch(going_on: Callable[[], bool]) -> None:
            while going_on():
                seen.append(workers())
                time.sleep(0.2)

        watch(lambda: driver.poll() is None)
        end = time.monotonic() + 30
        watch(lambda: seen[-1] > 0 and time.monotonic() < end)
    return judge(folder, disturbed=driver.returncode == 0 and [seen[0], max(seen), seen[-1]] == [0, 2, 0])


def actor_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    with once(training(folder), rng.uniform(0.0, 1.5), machines.kill_actor) as disturbed:
        outcome = search(folder)
    return judge(folder, disturbed=bool(disturbed) and outcome.counts.deaths > 0)


def driver_killed(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """With -9, at a random moment from its first configuration or from its first epochs on; then resumed."""
    driver = drive(folder, machines.cluster.address)
    begun = rng.choice([drawing, training])
    with once(begun(folder), rng.uniform(0.0, 2.5), lambda: driver.send_signal(signal.SIGKILL)):
        driver.wait(timeout=120)
    search(folder, resume=True)
    return judge(folder, disturbed=driver.returncode == -signal.SIGKILL)


def second_driver(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """Another process resumes the search while its driver lives: it is refused, and the search goes on."""
    driver, refused = drive(folder, machines.cluster.address), list[str]()

    def resume() -> None:
        try:
            with open_ledger(folder, space=SPACE, identity=IDENTITY, resume=True):
                pass
        except UserError as error:
            refused.append(str(error))

    with once(rng.choice([drawing, training])(folder), rng.uniform(0.0, 2.0), resume):
        driver.wait(timeout=120)
    in_time = bool(refused) and "another process" in refused[0]
    return judge(folder, disturbed=in_time and driver.returncode == 0)


def storage_fails(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The storage to which the ledger is copied is gone for a while, then back."""
    from study.cluster import monitor

    monitor.MIRROR_EVERY_S = 0.3
    storage, away = open_storage(str(folder.parent / "store"), folder.name), folder.parent / "away"

    def fail() -> None:
        Path(storage.root).rename(away)
        Path(storage.root).write_text("no folder")
        time.sleep(1.5)
        Path(storage.root).unlink()
        away.rename(storage.root)

    with once(drawing(folder), rng.uniform(0.5, 4.0), fail) as disturbed:
        search(folder, mirror=storage)
    outcome = judge(folder, disturbed=bool(disturbed))
    outcome.equal &= storage.read("study.journal") == (folder / "study.journal").read_bytes()
    return outcome


def storage_hangs(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The storage to which the ledger is copied answers nothing for a while: packs go on, the last copy is awaited."""
    from study.cluster import monitor

    monitor.MIRROR_EVERY_S = 0.3
    storage, hung = open_storage(str(folder.parent / "store"), folder.name), threading.Event()
    write, waited = storage.write, list[float]()

    def slowly(name: str, content: bytes) -> None:
        if hung.is_set():
            waited.append(time.monotonic())
            time.sleep(HANGS)
        write(name, content)

    object.__setattr__(storage, "write", slowly)
    with once(drawing(folder), rng.uniform(0.5, 3.0), hung.set):
        began = time.monotonic()
        search(folder, mirror=storage)
        spent = time.monotonic() - began
    outcome = judge(folder, disturbed=bool(waited) and spent < HANGS + CONFIGS / PACK * SECONDS + 30)
    outcome.equal &= storage.read("study.journal") == (folder / "study.journal").read_bytes()
    return outcome


def database_away(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The database with the ledger is away for 20 s: the search waits for it."""
    with postgres_server() as server:
        away = functools.partial(server.restart, away_s=20)
        with once(training(folder), rng.uniform(0.0, 1.5), away) as disturbed:
            search(folder, url=server.url, name="study", patience_s=120)
        return judge(folder, disturbed=bool(disturbed))


def database_gone(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The database stays away for longer than anybody waits: one line; when it is back the search is resumed."""
    with postgres_server() as server:
        where, said = {"url": server.url, "name": "study"}, ""
        with once(training(folder), rng.uniform(0.0, 1.5), lambda: server.restart(away_s=25)) as disturbed:
            try:
                search(folder, **where, patience_s=5)
            except UserError as error:
                said = str(error)
        search(folder, resume=True, **where, patience_s=60)
        outcome = judge(folder, disturbed=bool(disturbed) and "ledger" in said)
        outcome.equal &= "\n" not in said
        return outcome


def out_of_memory(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """Packs of certain configurations do not fit, and are halved until they do."""
    memory = rng.choice([1, 2])
    outcome = search(folder, memory=memory)
    halves = _log(folder).read_text().split("\n")
    return judge(folder, disturbed=not outcome.counts.deaths and len(halves) > 16 * CONFIGS // PACK)


def disk_full(machines: Machines, folder: Path, rng: random.Random) -> Outcome:
    """The disk with ledger and leaderboard is full for a while; root makes such a disk, others go without."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        filler, failed = folder / "filler", False
        with once(drawing(folder), rng.uniform(0.5, 4.0), lambda: _fill(filler)):
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
    node_joins: 3,
    autoscaled: 2,
    actor_killed: 5,
    driver_killed: 20,
    second_driver: 3,
    storage_fails: 3,
    storage_hangs: 2,
    database_away: 2,
    database_gone: 2,
    out_of_memory: 3,
    disk_full: 3,
}
"""How often each is tried."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="every fault once")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name has one of these in it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the process that `driver_killed` kills
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--requested", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")
        search(options.drive, requested=options.requested, seconds=options.seconds)
        return 0
    names = "fault | times | in time | requested | finished | duplicated | lost | epochs again | as undisturbed"
    print(f"| {names} |\n" + "|---" * 9 + "|")
    machines, good = Machines(), True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`: no node may stay
    try:
        for fault, times in FAULTS.items():
            if not any(word in fault.__name__ for word in options.only):
                continue
            if fault is disk_full and os.geteuid() != 0:
                continue
            if fault in (database_away, database_gone) and not programs():
                continue
            outcomes = []
            for i in range(1 if options.once else times):
                machines.mend()
                with tempfile.TemporaryDirectory() as name:
                    rng = random.Random(f"{options.seed}/{fault.__name__}/{i}")
                    outcomes.append(fault(machines, Path(name) / "study", rng))
            sums = [sum(getattr(o, f) for o in outcomes) for f in ("requested", "finished", "duplicated", "lost")]
            equal, disturbed = sum(o.equal for o in outcomes), sum(o.disturbed for o in outcomes)
            good &= equal == len(outcomes) and sums[0] == sums[1] and not sums[2] + sums[3]
            again = f"{sum(o.again for o in outcomes) / len(outcomes):.1f}"
            name = fault.__name__.replace("_", " ")
            cells = [name, len(outcomes), disturbed, *sums, again, f"{equal} of {len(outcomes)}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    finally:
        machines.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
