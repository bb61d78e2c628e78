"""Parquet on disk: atomic zstd writes, float16 feature columns, content hashes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Rows per row group: a feature row of 512 float16 is 1 KB, so a reader that streams holds a few megabytes.
ROW_GROUP_ROWS = 4096


def write_table(
    table: pa.Table, path: Path, *, metadata: dict[str, str] | None = None, compression_level: int | None = None
) -> None:
    """Write `table` so that `path` either holds all of it or does not exist (temporary name, fsync, rename)."""
    table = table.replace_schema_metadata(metadata)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with part.open("wb") as file:
        pq.write_table(
            table, file, compression="zstd", compression_level=compression_level, row_group_size=ROW_GROUP_ROWS
        )
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def feature_column(features_ID: np.ndarray) -> pa.FixedSizeListArray:
    """(I, D) floats as a FixedSizeList<float16>[D] column of I rows."""
    values = pa.array(np.ascontiguousarray(features_ID, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, features_ID.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(I, D) array of a FixedSizeList column, in the column's own float type."""
    width = column.type.list_size
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
