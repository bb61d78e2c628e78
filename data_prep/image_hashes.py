"""Hash image files, and remember the hashes."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.clip_features import Progress
from data_prep.errors import UserError
from data_prep.parquet import file_sha256, parquet_bytes
from data_prep.storage import Storage

HASHES_PER_TASK = 100  # a thread's task costs as much as ten files whose hash is known
HASHES_PER_REPORT = 1000  # fewer take no time to hash again, and are not remembered
SAVE_MEMO_EVERY_S = 60


def image_contents(
    images: pa.Table, caches: Storage | None = None, memo: str = "", progress: Progress | None = None
) -> pa.Table:
    """Return columns bytes and sha256 of every image, 0 and "" for those that cannot be read.

    memo: a file of `caches` that remembers the hashes of files by path, size and time of change; it is written now
    and then, so that a million files need not be hashed again.
    """
    known = _read_memo(caches, memo)
    found: list[tuple[int, str]] = []
    fresh: dict[str, tuple[int, int, str]] = {}
    started = saved = time.time()
    paths, inline = images["path"].to_pylist(), images["data"].to_pylist()

    def content(path: str | None, data: bytes | None) -> tuple[int, str, int]:
        if path is None:
            return len(data or b""), hashlib.sha256(data or b"").hexdigest(), 0
        try:
            status = os.stat(path)
            size, changed, digest = known.get(path, (0, 0, ""))
            if (status.st_size, status.st_mtime_ns) == (size, changed):
                return size, digest, 0
            # A file changed just now may change again within the same tick of the file system's clock.
            settled = status.st_mtime_ns if status.st_mtime < started - 2 else 0
            return status.st_size, file_sha256(Path(path)) if status.st_size else "", settled
        except OSError:
            return 0, "", 0

    def part(start: int) -> list[tuple[int, str, int]]:
        rows = slice(start, start + HASHES_PER_TASK)
        return [content(path, data) for path, data in zip(paths[rows], inline[rows], strict=True)]

    with ThreadPoolExecutor() as pool:  # threads: what takes long is the file system, if it is behind a network
        for path, (size, digest, changed) in zip(
            paths, chain.from_iterable(pool.map(part, range(0, len(paths), HASHES_PER_TASK))), strict=True
        ):
            found.append((size, digest))
            if changed:
                fresh[path] = (size, changed, digest)
                if progress and len(fresh) % HASHES_PER_REPORT == 0:
                    progress("hashing", len(found), len(paths))
                if caches and time.time() - saved > SAVE_MEMO_EVERY_S:
                    _write_memo(caches, memo, known | fresh)
                    saved = time.time()
    if caches and len(fresh) >= HASHES_PER_REPORT:
        _write_memo(caches, memo, known | fresh)
    return pa.table({"bytes": [size for size, _ in found], "sha256": [digest for _, digest in found]})


def _read_memo(caches: Storage | None, memo: str) -> dict[str, tuple[int, int, str]]:
    try:
        table = pq.read_table(pa.BufferReader((caches.read(memo) if caches else None) or b""))
        columns = [table[name].to_pylist() for name in ("path", "bytes", "changed", "sha256")]
    except (pa.ArrowException, OSError, KeyError):  # none yet, or not ours: only time is lost
        return {}
    return {path: (size, changed, digest) for path, size, changed, digest in zip(*columns, strict=True)}


def _write_memo(caches: Storage, memo: str, hashes: dict[str, tuple[int, int, str]]) -> None:
    size, changed, digest = zip(*hashes.values(), strict=True)
    table = pa.table({"path": list(hashes), "bytes": size, "changed": changed, "sha256": digest})
    with suppress(UserError):  # a shared cache may be read-only
        caches.write(memo, parquet_bytes(table, streamed=True))
