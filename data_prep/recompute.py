"""Encode a sample of a cache's texts and images again, and compare the features with the stored ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.base import DOMAINS
from data_prep.clip_features import Encode, Preprocess
from data_prep.errors import UserError
from data_prep.feature_store import read_cache_table
from data_prep.manifest import read_manifest
from data_prep.parquet import matrix

LOWEST_COSINE = 0.999  # of one content in another batch, precision or processor


def recompute(cache: str | Path, *, clip: str | None = None, data_root: Path | None = None, samples: int = 32) -> float:
    """Return the lowest cosine of stored and recomputed features of `samples` texts and as many images of each domain.

    clip: the cache's checkpoint, where it is neither a hub id nor the benchmark's own. data_root: the one under which
    the cache was built.
    Raises UserError if the checkpoint is another one, an image cannot be read, or a feature differs.
    """
    manifest = read_manifest(cache)
    bench = get_benchmark(manifest.benchmark, data_root, allow_partial=bool(manifest.partial))
    own = manifest.clip if "hub" in manifest.checkpoint else None
    checkpoint = bench.checkpoint(clip or own)
    if checkpoint.identity != manifest.checkpoint:
        raise UserError(
            f"must be the checkpoint of {cache}, {manifest.clip}; {checkpoint.name} is another one", option="clip"
        )
    if bench.texts:  # given, as the images' are
        stored_TD = matrix(read_cache_table(cache, "names")["feature"]).astype(np.float32)
        return float((stored_TD * bench.texts.features_CPD.reshape(stored_TD.shape)).sum(1).min())
    preprocess, encode = Preprocess(checkpoint), Encode(checkpoint, threads=1)

    def check(stored: pa.Table, named: str, unit: dict[str, Any]) -> float:
        row = encode(preprocess({"shard": "", "rows": len(stored), "texts": None, "path": None, "data": None} | unit))
        if row["fatal"]:
            raise UserError(row["fatal"], option="clip")
        if any(row["reasons"]):
            raise UserError(f"{cache}: an image cannot be read: {next(filter(None, row['reasons']))}")
        old, new = matrix(stored["feature"]).astype(np.float32), row["features"].astype(np.float32)
        cosine = (old * new).sum(1)
        if cosine.min() < LOWEST_COSINE:
            worst = stored[named][int(cosine.argmin())].as_py()
            raise UserError(
                f"{cache}: the feature of {worst!r} is not what its checkpoint gives (cosine {cosine.min():.3f})"
            )
        return float(cosine.min())

    def sample(table: pa.Table) -> pa.Table:
        rows = np.random.default_rng(0).permutation(len(table))[:samples]
        return table.take(np.sort(rows))

    texts = sample(read_cache_table(cache, "names"))
    lowest = [check(texts, "text", {"kind": "text", "texts": texts["text"].to_pylist()})]
    for domain in () if bench.holds_features else DOMAINS:  # features that were given are what they are
        stored = sample(read_cache_table(cache, domain))
        images = bench.images.take(pc.index_in(stored["key"], bench.images["key"]))
        unit = {"kind": "image", "path": images["path"].to_pylist(), "data": images["data"].to_pylist()}
        lowest.append(check(stored, "key", unit))
    return min(lowest)
