"""Loading features at scale: 1.28 million x 512 float16 from Parquet to one map that all processes of a node share.

Prints and writes the seconds of the first load (Parquet to the node's array file) and of a later one, and the memory of
`--readers` processes that have read every row, as a multiple of the data. A process's share is its proportional set
size (/proc/self/smaps_rollup), in which a page that n processes map counts 1/n, less what it was before the load.
Beside them a driver loads the whole cache, cuts the trials' data from it and scores zero-shot CLIP on a quarter as many
target images: its peak memory, mapped pages included.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.feature_store import mapped  # noqa: E402
from data_prep.manifest import SCHEMA_VERSION, write_manifest  # noqa: E402
from data_prep.parquet import ROW_GROUP_ROWS, feature_column, write_stream, write_table  # noqa: E402
from data_prep.storage import locate  # noqa: E402

CLASSES = 100


def write_cache(folder: Path, images: int, dim: int) -> None:
    """A cache of random features of length one, and of classes without relatives."""
    rng = np.random.default_rng(0)

    def features(rows: int) -> pa.FixedSizeListArray:
        values = rng.standard_normal((rows, dim), dtype=np.float32)
        return feature_column(values / np.linalg.norm(values, axis=1, keepdims=True))

    def image_rows(count: int) -> Iterator[pa.Table]:
        for start in range(0, count, ROW_GROUP_ROWS):
            rows = min(ROW_GROUP_ROWS, count - start)
            keys = [f"{start + i:08d}.jpg" for i in range(rows)]
            yield pa.table({"key": keys, "split": np.zeros(rows, np.int8), "feature": features(rows)})

    counts, classes = {"source": images, "target": images // 4}, range(CLASSES)
    alone = feature_column(np.eye(CLASSES))
    tables = {
        "classes": {
            "class_id": classes,
            "name": [f"class {c}" for c in classes],
            "wnid": [None] * CLASSES,
            "unseen": [[False]] * CLASSES,
        },
        "names": {"feature": features(CLASSES)},
        "nodes": {
            "wnid": [f"class:{c}" for c in classes],
            "class_id": classes,
            "depth": [0] * CLASSES,
            "lemmas": [["a"]] * CLASSES,
        },
        "node_texts": {"node": classes, "feature": features(CLASSES)},
        "edges": {"child": pa.array([], pa.int64()), "parent": pa.array([], pa.int64())},
        "similarity": {"path": alone, "wup": alone},
        **{f"{name}_labels": {"label": np.arange(count) % CLASSES} for name, count in counts.items()},
    }
    cache = locate(folder)
    for name, columns in tables.items():
        with cache.writer(f"{name}.parquet") as stream:
            write_table(pa.table({k: list(v) if isinstance(v, range) else v for k, v in columns.items()}), stream)
    for name, count in counts.items():
        with cache.writer(f"{name}.parquet") as stream:
            write_stream(image_rows(count), stream, metadata={})
    inputs = {"schema_version": SCHEMA_VERSION, "templates": ["{}"]}
    write_manifest(cache, inputs, benchmark="random", clip="random", logit_scale=100.0)


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


def drive(cache: Path, scratch: Path, pipe: Connection) -> None:
    """What a study's driver does with features."""
    os.environ["ZEROSWEEP_SCRATCH"] = str(scratch)
    from data_prep.feature_store import load
    from study.evaluation.final_test import Evaluation
    from study.protocol.trial_data import in_cache, trial_data

    before = peak_bytes()
    features = load(cache)
    data = trial_data(features, rotation=0, folds=3, seed=0)
    sent = pickle.dumps(data.to_arrays() | in_cache(data, features, str(cache)))
    Evaluation(cache, features, data, "pseudo-unseen").zero_shot("h*mi")
    pipe.send((peak_bytes() - before, len(sent)))


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
    ours, theirs = context.Pipe()
    driver = context.Process(target=drive, args=(cache, scratch, theirs))
    driver.start()
    driver_bytes, sent_bytes = ours.recv()
    driver.join()
    both = data + args.images // 4 * args.dim * 2
    result = {
        "images": args.images,
        "dim": args.dim,
        "gigabytes": round(data / 1e9, 3),
        "first_load_seconds": round(first_seconds, 2),
        "later_load_seconds": round(max(opened), 4),
        "loader_peak_ratio": round(loader_bytes / data, 3),
        "readers": args.readers,
        "resident_ratio": round(sum(shares) / data, 3),
        "driver_peak_ratio": round(driver_bytes / both, 3),
        "sent_to_each_node_megabytes": round(sent_bytes / 1e6, 1),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    shutil.rmtree(args.folder)
    if max(result["resident_ratio"], result["driver_peak_ratio"]) > 1.2 or result["loader_peak_ratio"] > 0.2:
        sys.exit(1)


if __name__ == "__main__":
    main()
