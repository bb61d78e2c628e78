"""Loading features at scale: 1.28 million x 512 float16 from Parquet to one map that all processes of a node share.

Prints and writes the seconds of the first load (Parquet to the node's array file) and of a later one, and the memory of
`--readers` processes that have read every row, as a multiple of the data. A process's share is its proportional set
size (/proc/self/smaps_rollup), in which a page that n processes map counts 1/n, less what it was before the load.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.feature_store import SCHEMA_VERSION, mapped, write_manifest  # noqa: E402
from data_prep.parquet import ROW_GROUP_ROWS, feature_column, write_stream  # noqa: E402
from data_prep.storage import locate  # noqa: E402


def write_cache(folder: Path, images: int, dim: int) -> None:
    """A cache that holds nothing but the source's features: random rows of length one."""
    rng = np.random.default_rng(0)

    def parts() -> "object":
        for start in range(0, images, ROW_GROUP_ROWS):
            rows = rng.standard_normal((min(ROW_GROUP_ROWS, images - start), dim), dtype=np.float32)
            yield pa.table({"feature": feature_column(rows / np.linalg.norm(rows, axis=1, keepdims=True))})

    with locate(folder).writer("source.parquet") as stream:
        write_stream(parts(), stream, metadata={})  # type: ignore[arg-type]
    write_manifest(locate(folder), {"schema_version": SCHEMA_VERSION}, {})


def proportional_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def read(cache: Path, scratch: Path, pipe: Connection) -> None:
    """A pack actor: maps the features, touches all of them, and says what they cost it while all readers hold them."""
    mapped(cache, "source", scratch)  # whatever is imported or allocated on first use is not the data
    before = proportional_bytes()
    started = time.perf_counter()
    features_ID = mapped(cache, "source", scratch)
    opened = time.perf_counter() - started
    total = sum(float(features_ID[i : i + 4096].astype(np.float32).sum()) for i in range(0, len(features_ID), 4096))
    pipe.send((opened, total))
    pipe.recv()  # all readers are there
    pipe.send(proportional_bytes() - before)
    pipe.recv()


def load_once(cache: Path, scratch: Path, pipe: Connection) -> None:
    import pyarrow.parquet  # noqa: F401

    before = peak_bytes()
    started = time.perf_counter()
    mapped(cache, "source", scratch)
    pipe.send((time.perf_counter() - started, peak_bytes() - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("feature_load"))
    parser.add_argument("--out", type=Path, default=Path("feature_load.json"))
    args = parser.parse_args()
    cache, scratch = args.folder / "cache", args.folder / "scratch"
    write_cache(cache, args.images, args.dim)
    data = args.images * args.dim * 2
    context = multiprocessing.get_context("spawn")

    ours, theirs = context.Pipe()
    loader = context.Process(target=load_once, args=(cache, scratch, theirs))
    loader.start()
    first_seconds, loader_bytes = ours.recv()
    loader.join()

    pipes, readers = [], []
    for _ in range(args.readers):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        readers.append(context.Process(target=read, args=(cache, scratch, theirs)))
        readers[-1].start()
    opened, totals = zip(*(pipe.recv() for pipe in pipes), strict=True)
    assert len(set(totals)) == 1
    for pipe in pipes:
        pipe.send(None)
    shares = [pipe.recv() for pipe in pipes]
    for pipe, reader in zip(pipes, readers, strict=True):
        pipe.send(None)
        reader.join()
    result = {
        "images": args.images,
        "dim": args.dim,
        "gigabytes": round(data / 1e9, 3),
        "first_load_seconds": round(first_seconds, 2),
        "later_load_seconds": round(max(opened), 4),
        "loader_peak_ratio": round(loader_bytes / data, 3),
        "readers": args.readers,
        "resident_ratio": round(sum(shares) / data, 3),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    shutil.rmtree(args.folder)
    if result["resident_ratio"] > 1.2 or result["loader_peak_ratio"] > 0.2:
        sys.exit(1)


if __name__ == "__main__":
    main()
