"""Benchmarks: which images, labels, classes and splits. One file each; nothing else knows a data set's layout."""

import difflib
from pathlib import Path

from data_prep.benchmarks import folder, icons2emoji
from data_prep.benchmarks.base import Benchmark
from data_prep.errors import UserError

FOLDER_PREFIX = "folder:"
BENCHMARKS = {"icons2emoji": icons2emoji.read}


def get_benchmark(name: str, data_root: Path | None = None) -> Benchmark:
    """Read the class table and image list of benchmark `name`; images themselves are opened later.

    name: a key of BENCHMARKS, or "folder:<path>" for your own images (a relative path starts at `data_root`, if given).
    Raises UserError for an unknown name (with the nearest valid one) and for whatever is wrong with the data.
    """
    if name.startswith(FOLDER_PREFIX):
        path = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        return folder.read(name, data_root / path if data_root else path)
    if name in BENCHMARKS:
        return BENCHMARKS[name](name, data_root)
    valid = [*BENCHMARKS, f"{FOLDER_PREFIX}<path>"]
    near = difflib.get_close_matches(name, [*BENCHMARKS, FOLDER_PREFIX], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0].replace(FOLDER_PREFIX, valid[-1])!r}?" if near else ""
    raise UserError(f"--benchmark must be one of {', '.join(valid)}; got {name!r}{hint}")
