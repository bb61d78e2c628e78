"""A user's own images as a benchmark: `<root>/<domain>/<class>/<image>` and `<root>/classes.csv`."""
from pathlib import Path
from data_prep.benchmarks.base import Benchmark


def read(name: str, root: Path) -> Benchmark:
    raise NotImplementedError
