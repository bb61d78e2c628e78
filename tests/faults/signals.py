"""A real study gets SIGINT or SIGTERM at each of its stages, then it is resumed.

    python tests/faults/signals.py                      # every stage, both signals: a table
    python tests/faults/signals.py --once               # two stages, a signal each: a test by hand
    python tests/faults/signals.py --only refit,export  # these stages

Each study is a process of its own with a Ray of its own. It must end within ten seconds with exit code 130 or 143, say
how to go on, leave no process behind, and write no leaderboard before its time. Resumed, it must end with the
leaderboard of a study that nobody disturbed, and say that it is finished.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
import psutil  # noqa: E402

SMALL = (
    "--configs 8 --pack 2 --epochs 3 --folds 2 --seeds 2 --top 2 --seed 3 --cpus-per-pack 2 --baselines none "
    "--benchmark icons2emoji --space sre"
).split()

WITHIN_S = 10.0
"""Seconds in which a study must have ended."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a study, and how to tell that it is in it."""

    module: str
    """Module that calls the stage's function."""
    function: str
    """Name of the function there."""
    seconds: float
    """From the function's begin to the signal."""
    leaderboard: bool = False
    """Whether the leaderboard is written by then."""
    options: tuple[str, ...] = ("--refit-workers", "0")
    """Options of the study."""


STAGES = {
    "features": Stage(module="study.pipeline.study", function="prepare_features", seconds=4.0),
    "plan": Stage(module="study.pipeline.study", function="make_plan", seconds=0.1),
    "search": Stage(module="study.pipeline.search_stage", function="run_searches", seconds=0.0),
    "refit": Stage(module="study.pipeline.rotation", function="refit", seconds=6.0, options=("--refit-workers", "1")),
    "tasks": Stage(module="study.pipeline.rotation", function="refit", seconds=0.5),
    "test": Stage(module="study.pipeline.rotation", function="Evaluation", seconds=0.1),
    "export": Stage(module="study.pipeline.rotation", function="_export", seconds=0.1),
    "report": Stage(module="study.pipeline.study", function="write_report", seconds=0.1, leaderboard=True),
}

SUITE = (("search", signal.SIGTERM), ("refit", signal.SIGINT))
"""What the suite runs."""


def drive(stage: str, marker: Path, arguments: list[str]) -> int:
    """Run a study that makes a file when it comes to a stage, and waits a second there: most take milliseconds."""
    where = STAGES[stage]
    module = import_module(where.module)
    real: Callable[..., Any] = getattr(module, where.function)

    def marked(*args: Any, **options: Any) -> Any:
        marker.touch()
        time.sleep(1.0)
        return real(*args, **options)

    setattr(module, where.function, marked)
    from study.run import listen_on_loopback, main

    listen_on_loopback()
    return main(arguments)


def disturbed(stage: str, signum: signal.Signals, work: Path, cache: Path) -> tuple[list[str], bool]:
    """Disturb a study and resume it; return the line of the table, and whether all is as it must be."""
    where, name = STAGES[stage], f"{stage}-{signum.name}"
    folder, marker = work / name, work / f"{name}.marker"
    cache = work / f"{name}.cache" if stage == "features" else cache
    study = [*SMALL, *where.options, "--storage", str(work), "--cache", str(cache), "--name", name]
    command = [sys.executable, __file__, "--drive", stage, "--marker", str(marker), "--", *study]
    said = work / f"{name}.out"
    with said.open("w") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment())
        ready = marker.exists if stage != "search" else lambda: '"result"' in _text(folder / "study.journal")
        while not ready():
            if driver.poll() is not None:
                raise RuntimeError(f"{name} ended before its time:\n{said.read_text()}")
            time.sleep(0.05)
        time.sleep(where.seconds)
        family = psutil.Process(driver.pid).children(recursive=True)
        began = time.monotonic()
        driver.send_signal(signum)
        code = driver.wait(timeout=120)
        seconds = time.monotonic() - began
    _, left = psutil.wait_procs(family, timeout=10)
    words = said.read_text()
    status = json.loads(_text(folder / "run.json") or "{}").get("status", "none")
    scored = (folder / "leaderboard.parquet").exists()
    again = [sys.executable, str(ROOT / "study/run.py"), *study, "--resume", "--quiet"]
    resumed = subprocess.run(again, env=environment())
    gave = "failed" if resumed.returncode else compare(folder, work / "undisturbed")
    after = json.loads(_text(folder / "run.json") or "{}").get("status", "none")
    good = {
        "exit code": code == 128 + signum,
        "seconds": seconds <= WITHIN_S,
        "left": not left,
        "words": "go on with" in words and f"--name {name} --resume" in words and "Traceback" not in words,
        "marks": status == ("none" if stage in ("features", "plan") else "interrupted"),
        "leaderboard": where.leaderboard or not scored,
        "resume": gave == "as undisturbed" and after == "finished",
    }
    wrong = [what for what, holds in good.items() if not holds]
    if wrong:
        print(f"{name}: {', '.join(wrong)}\n{words}", file=sys.stderr)
    line = [stage, signum.name, str(code), f"{seconds:.1f}", str(len(left)), status, f"{gave}, {after}"]
    return line, not wrong


def compare(folder: Path, undisturbed: Path) -> str:
    """Say whether a study's leaderboard is that of the undisturbed one."""
    left, right = (
        pd.read_parquet(f / "leaderboard.parquet").drop(columns=["study", "train_seconds"])
        for f in (folder, undisturbed)
    )
    try:
        pd.testing.assert_frame_equal(left, right, rtol=1e-5)
    except AssertionError as error:
        return str(error).replace("\n", " ")[:200]
    return "as undisturbed"


def environment() -> dict[str, str]:
    """Return the environment of a study: its Ray must not be joined by others on this machine, nor join them."""
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="two stages, a signal each")
    parser.add_argument("--only", default="", help="stages, separated by commas")
    parser.add_argument("--signal", choices=["SIGINT", "SIGTERM"], help="this one only")
    parser.add_argument("--drive", choices=STAGES, help=argparse.SUPPRESS)  # the process that gets the signal
    parser.add_argument("--marker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("study", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        sys.argv = ["study/run.py", *options.study]
        return drive(options.drive, options.marker, options.study)
    chosen = options.only.split(",") if options.only else list(STAGES)
    signals = [signal.Signals[options.signal]] if options.signal else [signal.SIGINT, signal.SIGTERM]
    runs = SUITE if options.once else [(stage, signum) for stage in chosen for signum in signals]
    good = True
    with tempfile.TemporaryDirectory(prefix="zs") as name:
        work, cache = Path(name), Path(name) / "cache"
        study = [*SMALL, "--refit-workers", "0", "--storage", name, "--cache", str(cache), "--name", "undisturbed"]
        command = [sys.executable, str(ROOT / "study/run.py"), *study]
        print(shlex.join(command), file=sys.stderr)
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
        names = "stage | signal | exit code | seconds | processes left | run.json | resumed"
        print(f"| {names} |\n" + "|---" * 7 + "|", flush=True)
        for stage, signum in runs:
            line, fine = disturbed(stage, signum, work, cache)
            print(f"| {' | '.join(line)} |", flush=True)
            good &= fine
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
