"""kill -9 of `python -m data_prep features`, Ray and all, at random moments; the next run must end with the same bytes.

    python tests/faults/feature_job.py                          # ten kills, 3,060 images: a table
    python tests/faults/feature_job.py --times 4 --seed 1

Half of the kills fall into the encoding, after a random number of shards and a random pause, half into the much shorter
time in which the tables are written. After every kill a run goes on to the end: its cache is compared, file by file,
with that of an undisturbed run. Ray's own processes must end by themselves when the one that started them is killed;
its agents take a minute, in which they look for the rest. The script counts those that do not, and ends them.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
"""After this time a process of Ray whose driver was killed is an orphan."""


def start(caches: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_prep", "features", "--cache-dir", str(caches)]
    ray = {"RAY_TMPDIR": str(caches.parent), "RAY_raylet_start_wait_time_s": "120"}  # the machine may be busy
    with caches.with_suffix(".log").open("w") as log:  # not a pipe: Ray's processes would hold it open
        return subprocess.Popen(
            command, env=os.environ | ray | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=log, stderr=log
        )


def finish(process: subprocess.Popen, caches: Path) -> None:
    if process.wait(timeout=600):
        sys.exit(caches.with_suffix(".log").read_text())


def reach(count: Callable[[Path], int], least: int, caches: Path, process: subprocess.Popen) -> float:
    """Wait until the job has written so many files, or has ended; the time at which it had."""
    while count(caches) < least and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


def shards(caches: Path) -> int:
    return len(list(caches.glob(".*.building/*.parquet")))


def tables(caches: Path) -> int:
    return len(list(caches.glob("icons2emoji-*/*.parquet")))


def contents(caches: Path) -> dict[str, str]:
    """Every file below the folder but for locks: so half-written files and old shards show, too."""
    files = [path for path in caches.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(caches)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill(process: subprocess.Popen) -> tuple[bool, list[psutil.Process]]:
    """Whether it was killed in time, and the processes that it had started."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    return process.wait() < 0, descendants


def end(processes: list[psutil.Process]) -> int:
    """How many stay."""
    _, left = psutil.wait_procs(processes, timeout=PATIENCE_S)
    for orphan in left:
        print(f"orphan: {orphan.status()} {' '.join(orphan.cmdline())[:100]}", file=sys.stderr)
        orphan.kill()
    return len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng, good, rays = random.Random(options.seed), True, list[psutil.Process]()
    with tempfile.TemporaryDirectory() as name:
        caches = Path(name) / "undisturbed"
        process = start(caches)
        begun = reach(shards, 1, caches, process)
        encoded = reach(tables, 1, caches, process)
        all_shards = shards(caches)
        sealed = reach(lambda c: len(list(c.glob("icons2emoji-*/manifest.json"))), 1, caches, process)
        finish(process, caches)
        expected = contents(caches)
        stages = [(shards, all_shards, encoded - begun), (tables, tables(caches), sealed - encoded)]
        print(f"undisturbed: {all_shards} shards in {encoded - begun:.2f} s, tables in {sealed - encoded:.2f} s")
        print(
            "| killed after | and s | shards | tables | processes of Ray | next run s | same bytes |\n"
            + "|---" * 7
            + "|"
        )
        for i in range(options.times):
            caches = Path(name) / f"killed-{i}"
            count, files, seconds = stages[i % 2]
            least, pause = rng.randint(1, files), rng.random() * seconds / files
            process = start(caches)
            reach(count, least, caches, process)
            time.sleep(pause)
            in_time, descendants = kill(process)
            rays += descendants
            there = [shards(caches), tables(caches), len(descendants)]
            started = time.monotonic()
            finish(start(caches), caches)
            took, same = time.monotonic() - started, contents(caches) == expected
            good &= same
            moment = f"{least} {count.__name__} of {files}" if in_time else "too late"
            print("| " + " | ".join(map(str, [moment, f"{pause:.3f}", *there, f"{took:.1f}", same])) + " |", flush=True)
        left = end(rays)
        print(f"{left} of Ray's processes are left")
    return 0 if good and not left else 1


if __name__ == "__main__":
    sys.exit(main())
