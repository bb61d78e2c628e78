"""Open a study's folder (local, or behind a URI that pyarrow knows: s3://, gs://, hdfs://) and write files into it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_prep.errors import UserError
from data_prep.parquet import parquet_bytes
from data_prep.storage import Storage, locate

IDENTITY = "study.json"
"""File that says which study a folder holds; written before anything else."""


def open_storage(storage: str, name: str) -> Storage:
    """Return the folder of study `name` under a folder or URI, after a trial write. Raises `UserError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # also keeps it inside the storage
        raise UserError(f"must be letters, digits and . _ - (the first a letter or digit), got {name!r}", option="name")
    opened = locate(storage) / name
    opened.write(".writable", b"")
    opened.filesystem.delete_file(f"{opened.root}/.writable")
    return opened


def write_json(storage: Storage, file: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file, indented for people. Raises `UserError` if the storage cannot be written."""
    storage.write(file, (json.dumps(content, indent=2) + "\n").encode())


def write_table(storage: Storage, name: str, table: pa.Table) -> None:
    """Write NAME.parquet. Raises `UserError` if the storage cannot be written."""
    storage.write(f"{name}.parquet", parquet_bytes(table))


def read_table(storage: Storage, name: str, *, schema: pa.Schema | None = None) -> pa.Table | None:
    """Read NAME.parquet; None where there is no such file. `schema`: columns and types to read it with."""
    content = storage.read(f"{name}.parquet")
    return None if content is None else pa.parquet.read_table(pa.BufferReader(content), schema=schema)
