"""A real study of seconds on the embedded benchmark, through the command line."""

from pathlib import Path

from study.run import main

SMALL = (
    "--configs 4 --pack 2 --epochs 2 --folds 2 --seeds 2 --top 1 --seed 3 --cpus-per-pack 2 --refit-workers 0 "
    "--baselines none".split()
)


def run(storage: Path, cache: Path, *arguments: str) -> int:
    return main([*SMALL, "--storage", str(storage), "--cache", str(cache.parent), *arguments])
