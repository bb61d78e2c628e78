"""What a pack on all cores loses to another busy process, by how its threads wait for each other.

OpenMP keeps cores busy while threads wait. A worker of Ray gives way to other processes (its niceness is 15), so a
thread that waits so takes the core that the other thread needs. `data_prep/__init__.py` says that they sleep sooner.
Each line is the time of ten epochs over that on the quiet machine with OpenMP's own way of waiting.
By the clock: only on a machine that does nothing else.

    python tests/bench/busy_machine.py        # four minutes on 2 cores; writes busy_machine.json
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
WAITING: dict[str, tuple[str, dict[str, str]]] = {
    "OpenMP has it": ("torch", {}),
    "we say": ("data_prep", {}),
    "asleep": ("torch", {"OMP_WAIT_POLICY": "passive"}),
}
"""How the threads of a process wait for each other: what it imports first, and its environment."""
LONGEST_S = 60.0
"""After which a try is given up."""


def train(threads: int) -> None:
    """Print the seconds of ten epochs of a pack of four."""
    os.nice(15)  # as Ray starts its workers
    import torch  # not above: OpenMP must not be loaded before `data_prep` has said how to wait
    from common import synthetic

    from models.sre_clip import SREConfig
    from study.training.pack import pack_on_folds

    torch.set_num_threads(threads)
    pack = pack_on_folds([SREConfig()] * 4, seeds=range(4), data=synthetic("embedded"), epochs=12)
    for _ in range(2):
        pack.train_epoch()
    started = time.perf_counter()
    for _ in range(10):
        pack.train_epoch()
    print(time.perf_counter() - started)


def seconds(threads: int, waiting: str) -> float:
    """Train in a process of its own; `LONGEST_S` where it takes longer."""
    first, environment = WAITING[waiting]
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    path = {"PYTHONPATH": os.pathsep.join(sys.path[:2])}
    command = [sys.executable, "-c", f"import {first}, busy_machine; busy_machine.train({threads})"]
    everything = kept | path | environment
    try:
        done = subprocess.run(command, env=everything, capture_output=True, text=True, check=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return LONGEST_S
    return float(done.stdout)


def spin() -> None:
    while True:
        pass


@contextmanager
def busy() -> Iterator[None]:
    """Another process that uses a core."""
    other = multiprocessing.Process(target=spin, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.kill()
        other.join()


def main() -> None:
    from common import parser, write

    options = parser(__doc__)
    options.set_defaults(threads=len(os.sched_getaffinity(0)))
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    quiet: dict[str, list[float]] = {name: [] for name in WAITING}
    beside: dict[str, list[float]] = {name: [] for name in WAITING}
    for _ in range(args.rounds):
        for name in WAITING:
            quiet[name].append(seconds(args.threads, name))
            with busy():
                beside[name].append(seconds(args.threads, name))
    base = statistics.median(quiet["OpenMP has it"])
    results = {}
    for machine, found in (("quiet", quiet), ("one other process busy", beside)):
        for name, times in found.items():
            ratio = statistics.median(times) / base
            least = "at least " if statistics.median(times) >= LONGEST_S else ""
            print(f"{machine}, threads wait as {name}: {least}{ratio:.2f} times")
            results[f"{machine}, {name}"] = ratio
    write(args.out, results, threads=args.threads, seconds=base)


if __name__ == "__main__":
    main()
