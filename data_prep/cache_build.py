"""From a benchmark and a checkpoint to a sealed feature cache."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from data_prep.benchmarks import get_benchmark, with_roles
from data_prep.benchmarks.base import DOMAINS, Benchmark
from data_prep.cache_tables import (
    check_classes,
    check_texts,
    class_tables,
    given_texts,
    graph_tables,
    image_rows,
    label_tables,
    name_texts,
    node_texts,
    rejected_table,
)
from data_prep.checkpoint import CLIP, Checkpoint
from data_prep.clip_features import Progress, encode
from data_prep.decode import DECODER
from data_prep.errors import UserError
from data_prep.feature_store import read_cache_table
from data_prep.image_hashes import image_contents
from data_prep.manifest import SCHEMA_VERSION, fingerprint, read_manifest, write_manifest
from data_prep.options import FeatureOptions
from data_prep.parquet import feature_column, file_sha256, write_stream, write_table
from data_prep.ray_session import ray_session
from data_prep.storage import Storage, locate
from data_prep.templates import find_templates
from data_prep.wordnet import NOUNS, wordnet
from data_prep.wordnet_graph import build_graph

SHOWN_ERRORS = 5


class NotPrepared(Exception):
    """A feature cache is not there, and was not to be built."""


def prepare(
    options: FeatureOptions,
    progress: Progress | None = None,
    note: Callable[[str], object] | None = None,
    *,
    may_build: bool = True,
) -> Path | str:
    """Build the feature cache of a benchmark and a checkpoint with Ray Data unless it is there; return folder or URI.

    progress: called as progress(stage, done, total). note: called with each of the benchmark's notes, first of all. An
    initialised Ray is used; otherwise one is started, only if there is work, and stopped again. A build that was
    interrupted goes on with its finished shards. Fingerprint and manifest state the missing part of an incomplete data
    set, and unreadable images. may_build: False raises NotPrepared instead of encoding anything.
    Raises UserError for whatever is wrong with the options, the images, the class table or the checkpoint.
    """
    name = with_roles(options.benchmark, options.source, options.target)
    bench = get_benchmark(name, options.data_root, allow_partial=options.allow_partial)
    if note:
        for text in bench.notes:
            note(text)
    if options.templates:
        if bench.texts:
            raise UserError(f"must be left out: {bench.texts.path} has the prompts' features", option="templates")
        bench = replace(bench, templates=find_templates(options.templates))
    checkpoint = bench.checkpoint(options.clip)
    if options.tokens and bench.holds_features:
        raise UserError(f"must be left out with {bench.name}, which has no images", option="tokens")
    if options.tokens and checkpoint.model_type != CLIP:
        raise UserError(
            f"must be left out: only CLIP's patches have features; {checkpoint.name} is another model", option="tokens"
        )
    caches = locate(options.cache_dir, option="")
    contents = image_contents(bench.images, caches, f".{bench.slug}.hashes.parquet", progress)
    inputs = inputs_of(bench, checkpoint, contents, tokens=options.tokens)
    made_of = fingerprint(inputs)
    name = f"{bench.slug}-{made_of[:12]}"
    cache = caches / name
    if not may_build and not _is_complete(cache, made_of):
        raise NotPrepared
    if options.rebuild or not _is_complete(cache, made_of):  # without a lock: a shared cache may be read-only
        with _locked(caches, name):
            if options.rebuild or not _is_complete(cache, made_of):
                build = _Build(
                    caches=caches,
                    name=name,
                    bench=bench,
                    checkpoint=checkpoint,
                    contents=contents,
                    inputs=inputs,
                    gpu=options.gpu,
                    progress=progress,
                )
                build.run(options.rebuild, options.max_rejected)
    else:
        _clear_remains(caches, name)
    if read_manifest(cache.shown).rejected:
        _refuse(read_cache_table(cache.shown, "rejected"), len(bench.images), options.max_rejected)
    return Path(cache.root) if cache.is_local else cache.shown


def _building(name: str) -> str:
    """Return the folder of a cache's shards while it is built."""
    return f".{name}.building"


def _clear_remains(caches: Storage, name: str) -> None:
    """Remove the shards of a build that was killed after it had sealed the cache; not those of a running rebuild.

    In object stores, which have no locks to tell one from the other, they stay until a rebuild.
    """
    if caches.is_local and Path((caches / _building(name)).root).exists():
        with suppress(UserError), _locked(caches, name, wait=False):  # busy, or a shared cache that is read-only
            caches.clear(_building(name))


@contextmanager
def _locked(caches: Storage, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a cache: a second process that wants it waits for the first and finds it done.

    Object stores have no locks: there both do the work, and write the same bytes (see `_Build.run`).
    """
    if not caches.is_local:
        yield
        return
    try:
        Path(caches.root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(caches.root) / f".{name}.lock")
        lock.acquire(blocking=wait)
    except OSError as error:
        raise UserError(f"the cache folder must be writable; {caches.shown}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _is_complete(cache: Storage, made_of: str) -> bool:
    try:
        inputs = read_manifest(cache.shown).inputs
    except UserError:
        return False
    return fingerprint({name: value for name, value in inputs.items() if name != "rejected"}) == made_of


def inputs_of(bench: Benchmark, checkpoint: Checkpoint, contents: pa.Table, *, tokens: bool = False) -> dict[str, Any]:
    """Return all that a cache's content depends on; its hash is the fingerprint."""
    listing = hashlib.sha256()
    columns = [bench.images[name].to_pylist() for name in ("key", "label", "domain", "split")]
    for row in zip(*columns, contents["bytes"].to_pylist(), contents["sha256"].to_pylist(), strict=True):
        listing.update(json.dumps(row).encode() + b"\n")
    classes = bench.classes
    return {
        "schema_version": SCHEMA_VERSION,
        "decoder": DECODER,
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
        # absent facts leave no trace: other benchmarks keep their fingerprints
        **({"partial": bench.partial} if bench.partial else {}),
        **({"encoded": True} if bench.holds_features else {}),
        **({"halves": True} if bench.halves else {}),
        **({"target_classes": list(bench.target_classes)} if bench.target_classes else {}),
        **({"tokens": True} if tokens else {}),
    }


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One cache in the making. Shards and tables are written atomically, the manifest last: it makes the cache."""

    caches: Storage
    """Folder of caches."""
    name: str
    """The cache's folder there."""
    bench: Benchmark
    """Images, classes, prompts."""
    checkpoint: Checkpoint
    """The model."""
    contents: pa.Table
    """Columns bytes and sha256 of every image."""
    inputs: dict[str, Any]
    """What the fingerprint is made of, but for the images that will be rejected."""
    gpu: bool
    """Whether GPUs encode, and nothing else."""
    progress: Progress | None
    """Called after every shard."""

    def run(self, rebuild: bool, max_rejected: float) -> None:
        """Build and seal the cache. Raises UserError if more images are rejected than may be; the shards stay."""
        if rebuild:
            self.caches.clear(_building(self.name))
        try:
            self._run(max_rejected)
        except FileNotFoundError:
            # in an object store another process may have sealed the cache meanwhile, and removed the shards
            if not _is_complete(self.caches / self.name, fingerprint(self.inputs)):
                raise
            self.caches.clear(_building(self.name))

    def _run(self, max_rejected: float) -> None:
        bench, name, cache = self.bench, self.name, self.caches / self.name
        graph = build_graph(wordnet(), bench.classes.names, bench.classes.wnids, bench.auxiliary_wnids)
        names, nodes = name_texts(bench), node_texts(graph, bench.templates)
        texts = [*names["text"].to_pylist(), *nodes["text"].to_pylist()]
        shards, tokens = self.caches / _building(name), "tokens" in self.inputs
        with ray_session():
            encoded = encode(
                bench.images,
                texts,
                self.checkpoint,
                shards,
                encoded=bench.holds_features,
                given_texts=given_texts(bench, names),
                tokens=tokens,
                gpu=self.gpu,
                progress=self.progress,
            )
        rejected = rejected_table(bench, encoded)
        _refuse(rejected, len(bench.images), max_rejected)
        check_classes(bench, encoded)
        readable_I = np.array([not reason for reason in encoded.reasons])
        inputs, tables = self.inputs, class_tables(bench) | graph_tables(graph, len(bench.classes.names))
        if len(rejected):
            tables["rejected"] = rejected
            keys = "\n".join(rejected["key"].to_pylist())
            inputs = inputs | {
                "rejected": {"count": len(rejected), "sha256": hashlib.sha256(keys.encode()).hexdigest()}
            }
        name_features, node_features = np.split(encoded.text_features_TD, [len(names)])
        check_texts(bench, name_features)
        tables |= label_tables(bench, readable_I) | {
            "names": names.append_column("feature", feature_column(name_features)),
            "node_texts": nodes.append_column("feature", feature_column(node_features)),
        }
        if cache.is_local:
            self.caches.clear(name)  # a killed build's half-written files, which object stores have not
        metadata = {"fingerprint": fingerprint(inputs)}
        for table_name, table in tables.items():
            with cache.writer(f"{table_name}.parquet") as stream:
                write_table(table, stream, metadata=metadata)
        for domain in DOMAINS:
            for suffix, column in (("", "feature"), ("_tokens", "tokens"))[: 1 + tokens]:
                rows = image_rows(domain, bench, self.contents, encoded, readable_I, column)
                with cache.writer(f"{domain}{suffix}.parquet") as stream:
                    write_stream(rows, stream, metadata=metadata)
        write_manifest(
            cache,
            inputs,
            benchmark=bench.name,
            clip=self.checkpoint.name,
            logit_scale=encoded.logit_scale,
            precision=encoded.precision,
            batch=encoded.batch,
            cut_texts=encoded.cut_texts,
            several_frames=encoded.several_frames,
        )
        self.caches.clear(_building(name))


def _refuse(rejected: pa.Table, images: int, max_rejected: float) -> None:
    """Raise UserError if more images cannot be read than may be."""
    if len(rejected) > max_rejected * images:
        rows = rejected.slice(0, SHOWN_ERRORS).to_pylist()
        shown = "; ".join(f"{row['key']} ({row['reason']})" for row in rows)
        more = f"; and {len(rejected) - SHOWN_ERRORS} more" if len(rejected) > SHOWN_ERRORS else ""
        allowed = f"max_rejected allows {max_rejected:.2%}"
        raise UserError(f"{len(rejected)} of {images} images cannot be read ({allowed}): {shown}{more}")
