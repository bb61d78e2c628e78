"""Parquet: zstd, float16 feature columns, row groups that a streaming reader can hold; content hashes."""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

# A feature row of 512 float16 is 1 KB, and one of 49 patch tokens 50 KB: a reader that streams holds a few megabytes.
ROW_GROUP_ROWS = 4096
ROW_GROUP_BYTES = 32 * 2**20

_FORMULA = r"(?s:[=+\-@\t\r].)"
"""How a cell begins that a spreadsheet runs; a sign alone, such as the "-" of classes outside WordNet, does nothing."""


def write_table(
    table: pa.Table,
    file: Any,
    *,
    metadata: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    compression_level: int | None = None,
) -> None:
    """Write `table` to a path or a stream."""
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, file, compression="zstd", compression_level=compression_level, row_group_size=ROW_GROUP_ROWS)


def parquet_bytes(table: pa.Table, *, streamed: bool = False) -> bytes:
    """Return a table, with its metadata, as the bytes of a Parquet file.

    `streamed`: as `write_table` writes it, for readers that stream; otherwise with pyarrow's defaults.
    """
    content = io.BytesIO()
    if streamed:
        write_table(table, content, metadata=table.schema.metadata)
    else:
        pq.write_table(table, content)
    return content.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    """Return `table` as the bytes of a CSV file with a line of headings, for `read_csv` and for spreadsheets.

    A cell that a spreadsheet would run as a formula begins with an apostrophe.
    """
    for i, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            safe = pc.replace_substring_regex(column, f"^('*{_FORMULA})", r"'\1")
            table = table.set_column(i, table.schema.field(i), safe)
    content = io.BytesIO()
    pa.csv.write_csv(table, content)
    return content.getvalue()


def plain_cell(text: str) -> str:
    """Return a cell as `csv_bytes` writes it, for files that are written row by row."""
    return f"'{text}" if re.match(f"'*{_FORMULA}", text) else text


def read_csv(content: bytes, *, strings: Sequence[str]) -> pa.Table:
    """Read what `csv_bytes` wrote; columns called as in `strings` hold text, even where it looks like a number or null.

    Raises `pa.ArrowInvalid`.
    """
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in strings}, null_values=[], strings_can_be_null=False
    )
    table = pa.csv.read_csv(pa.BufferReader(content), convert_options=options)
    for i, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            plain = pc.replace_substring_regex(column, f"^'('*{_FORMULA})", r"\1")
            table = table.set_column(i, table.schema.field(i), plain)
    return table


def write_stream(parts: Iterable[pa.Table], file: Any, *, metadata: dict[str, str]) -> None:
    """Write tables one after the other as one file, holding a row group at a time. At least one must be given."""
    writer: pq.ParquetWriter | None = None
    held: list[pa.Table] = []
    rows = ROW_GROUP_ROWS

    def flush(whole: int) -> None:
        """Write full row groups, or, with whole=1, all that is held."""
        table = pa.concat_tables(held).combine_chunks()
        end = len(table) // whole * whole
        if end and writer:
            writer.write_table(table.slice(0, end), row_group_size=rows)
        held[:] = [table.slice(end)]

    for part in parts:
        part = part.replace_schema_metadata(metadata)
        if writer is None:
            writer = pq.ParquetWriter(file, part.schema, compression="zstd")
            row_bytes = sum(f.type.list_size * 2 for f in part.schema if pa.types.is_fixed_size_list(f.type))
            rows = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // max(row_bytes, 1)))
        held.append(part)
        if sum(map(len, held)) >= rows:
            flush(rows)
    flush(1)
    assert writer is not None
    writer.close()


def feature_column(features_ID: np.ndarray) -> pa.FixedSizeListArray:
    """Turn floats (I, D) into a FixedSizeList<float16>[D] column of I rows."""
    values = pa.array(np.ascontiguousarray(features_ID, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, features_ID.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return the array (I, D) of a FixedSizeList column, in the column's own float type."""
    width = column.type.list_size
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def list_column(file: pq.ParquetFile) -> str:
    """Return the name of the last column of a file of features, a list of fixed size."""
    return file.schema_arrow.names[-1]


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
