"""From a benchmark and a checkpoint to a sealed feature cache."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.base import Benchmark
from data_prep.cache_tables import class_tables, graph_tables, image_tables, name_texts, node_texts
from data_prep.checkpoint import Checkpoint, find_checkpoint
from data_prep.clip_features import Progress, encode
from data_prep.errors import UserError
from data_prep.feature_store import SCHEMA_VERSION, fingerprint, read_manifest, write_manifest
from data_prep.parquet import feature_column, file_sha256, write_table
from data_prep.templates import find_templates
from data_prep.wordnet import NOUNS, wordnet
from data_prep.wordnet_graph import build_graph


def prepare(
    *,
    benchmark: str,
    clip: str | None = None,
    data_root: Path | None = None,
    cache_dir: Path = Path(".cache"),
    rebuild: bool = False,
    allow_partial: bool = False,
    templates: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Folder of the feature cache of this benchmark and checkpoint; built with Ray Data if it is missing.

    benchmark: see `get_benchmark`. clip: folder or hub id; None takes the benchmark's default. rebuild: build it even
    if it is there. allow_partial: take an incomplete data set; fingerprint, manifest and `FeatureSet.partial` tell what
    is missing. templates: a set's name or prompts with {}, in place of the benchmark's own. progress: called as
    progress(stage, done, total). An initialised Ray is used; otherwise one is started, only if there is work, and
    stopped again. A build that was interrupted goes on with its finished shards.
    Raises UserError for whatever is wrong with the arguments, the images, the class table or the checkpoint.
    """
    bench = get_benchmark(benchmark, data_root, allow_partial=allow_partial)
    if templates is not None:
        bench = replace(bench, templates=find_templates(templates))
    checkpoint = find_checkpoint(clip or bench.default_clip)
    contents = image_contents(bench.images)
    inputs = inputs_of(bench, checkpoint, contents)
    made_of = fingerprint(inputs)
    cache = cache_dir / f"{bench.slug}-{made_of[:12]}"
    if _is_complete(cache, made_of) and not rebuild:
        return cache  # without a lock: a shared cache may be read-only
    with _locked(cache_dir, cache.name):
        if rebuild or not _is_complete(cache, made_of):
            _build(cache, bench, checkpoint, contents, inputs, rebuild, progress)
    return cache


@contextmanager
def _locked(cache_dir: Path, name: str) -> Iterator[None]:
    """Two processes that want the same cache: the second waits for the first and finds it done."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_dir / f".{name}.lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"the cache folder must be writable; {cache_dir}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _is_complete(cache: Path, made_of: str) -> bool:
    try:
        return bool(read_manifest(cache)["fingerprint"] == made_of)
    except UserError:
        return False


def image_contents(images: pa.Table) -> pa.Table:
    """Columns bytes and sha256 of every image. Raises UserError naming the files that are missing or empty."""

    def content(path: str | None, data: bytes | None) -> tuple[int, str]:
        if path is None:
            return len(data or b""), hashlib.sha256(data or b"").hexdigest()
        try:
            return Path(path).stat().st_size, file_sha256(Path(path))
        except OSError:
            return 0, ""

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(content, images["path"].to_pylist(), images["data"].to_pylist()))
    bad = [key for key, (size, _) in zip(images["key"].to_pylist(), found, strict=True) if size == 0]
    if bad:
        raise UserError(f"{len(bad)} of {len(images)} images are missing or empty: {', '.join(bad[:5])}")
    return pa.table({"bytes": [size for size, _ in found], "sha256": [digest for _, digest in found]})


def inputs_of(bench: Benchmark, checkpoint: Checkpoint, contents: pa.Table) -> dict[str, Any]:
    """All that a cache's content depends on; its hash is the fingerprint."""
    listing = hashlib.sha256()
    columns = [bench.images[name].to_pylist() for name in ("key", "label", "domain", "split")]
    for row in zip(*columns, contents["bytes"].to_pylist(), contents["sha256"].to_pylist(), strict=True):
        listing.update(json.dumps(row).encode() + b"\n")
    classes = bench.classes
    return {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": checkpoint.identity,
        "templates": list(bench.templates),
        "classes": {
            "names": list(classes.names),
            "wnids": list(classes.wnids),
            "unseen": classes.unseen_RC.int().tolist(),
        },
        "images": {
            "count": len(contents),
            "bytes": sum(contents["bytes"].to_pylist()),
            "sha256": listing.hexdigest(),
        },
        "wordnet": file_sha256(NOUNS),
        "auxiliary_wnids": sorted(bench.auxiliary_wnids),
        # what is not there leaves no trace: other benchmarks keep their fingerprints
        **({"partial": bench.partial} if bench.partial else {}),
        **({"halves": True} if bench.halves else {}),
        **({"target_classes": list(bench.target_classes)} if bench.target_classes else {}),
    }


def _build(
    cache: Path,
    bench: Benchmark,
    checkpoint: Checkpoint,
    contents: pa.Table,
    inputs: dict[str, Any],
    rebuild: bool,
    progress: Progress | None,
) -> None:
    building = cache.with_name(f".{cache.name}.building")
    if rebuild and building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True, exist_ok=True)
    graph = build_graph(wordnet(), bench.classes.names, bench.classes.wnids, bench.auxiliary_wnids)
    names, nodes = name_texts(bench), node_texts(graph, bench.templates)
    texts = [*names["text"].to_pylist(), *nodes["text"].to_pylist()]
    with _ray():
        encoded = encode(bench.images, texts, checkpoint, building / "shards", progress)
    name_features, node_features = np.split(encoded.text_features_TD, [len(names)])
    tables = {
        **class_tables(bench),
        **image_tables(bench, contents, encoded.image_features_ID),
        **graph_tables(graph, len(bench.classes.names)),
        "names": names.append_column("feature", feature_column(name_features)),
        "node_texts": nodes.append_column("feature", feature_column(node_features)),
    }
    for name, table in tables.items():
        write_table(table, building / f"{name}.parquet", metadata={"fingerprint": fingerprint(inputs)})
    extra = {
        "benchmark": bench.name,
        "clip": checkpoint.name,
        "logit_scale": encoded.logit_scale,
        "precision": encoded.precision,
    }
    write_manifest(building, inputs, extra)
    shutil.rmtree(building / "shards")
    if cache.exists():
        shutil.rmtree(cache)
    building.rename(cache)


@contextmanager
def _ray() -> Iterator[None]:
    """An initialised Ray: the caller's, or one of our own for the time of the build."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")  # another cluster that happens to run here is not ours
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
